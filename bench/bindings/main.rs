//! `make bench-bindings`: what a bind costs with Keycloak, a vault and PostgreSQL, how fast an unbind closes every way in,
//! and what comparing 10,000 bindings with the world takes.
//!
//! The broker is a release build in a process of its own; this program is its platform, the application, and a counting
//! proxy in front of Keycloak and the vault of the testbed (`bench/bindings.sh` sees to them). `README.md` tells the method;
//! the words `binds` and `sweep` choose parts of it.

#![expect(
    clippy::disallowed_methods,
    reason = "where the testbed is comes from the environment"
)]

mod bare;
mod binds;
#[path = "../broker.rs"]
#[expect(dead_code, reason = "shared with the other benchmarks, which use the rest")]
mod broker;
#[path = "../client.rs"]
#[expect(dead_code, reason = "shared with the other benchmarks, which use the rest")]
mod client;
mod many;
#[path = "../parts.rs"]
mod parts;
mod place;
mod proxy;
#[path = "../report.rs"]
mod report;
#[path = "../rows.rs"]
#[expect(dead_code, reason = "shared with the other benchmarks, which use the rest")]
mod rows;
mod sweep;
mod unbinds;

use anyhow::Result;
use parts::Part;

const PARTS: &[Part] = &[("binds", binds::run), ("sweep", sweep::run)];

fn main() -> Result<()> {
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    parts::run("chandler-bench-bindings-", PARTS, &chosen, |_| place::clean())
}
