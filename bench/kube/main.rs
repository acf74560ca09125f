//! `make bench-kube`: what the broker costs a cluster, and what a cluster lets it do.
//!
//! The broker is a release build in a process of its own; it and this program run inside the network of the testbed's
//! node (`bench/kube.sh` sees to that), the broker under an account of its own with the rights `chandler rbac` prints.
//! `README.md` tells the method; the words `provisions` and `fleet` choose parts of it.

#![expect(
    clippy::disallowed_methods,
    reason = "where the testbed is comes from the environment, and a clock to stamp with"
)]

#[path = "../broker.rs"]
#[expect(dead_code, reason = "shared with the other benchmark, which uses the rest")]
mod broker;
#[path = "../client.rs"]
#[expect(dead_code, reason = "shared with the other benchmark, which uses the rest")]
mod client;
mod cluster;
mod fleet;
#[path = "../parts.rs"]
mod parts;
mod provisions;
#[path = "../report.rs"]
mod report;
mod room;
#[path = "../rows.rs"]
#[expect(dead_code, reason = "shared with the other benchmark, which uses the rest")]
mod rows;
mod work;

use anyhow::Result;
use parts::Part;

const PARTS: &[Part] = &[("provisions", provisions::run), ("fleet", fleet::run)];

fn main() -> Result<()> {
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    parts::run("chandler-bench-kube-", PARTS, &chosen, |_| room::clean())
}
