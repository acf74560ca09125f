//! `make bench`: speed and memory of the broker, as ratios within one run.
//!
//! The broker is a release build in a process of its own; this program is the load beside it and the
//! comparison. Compared runs alternate and medians are taken, because machines are noisy. Everything
//! happens on loopback, below one temporary directory, and is removed at the end. `README.md` tells
//! the method; the words `accept`, `reads`, `start` and `services` choose parts of it.

mod accept;
#[expect(dead_code, reason = "shared with the other benchmark, which uses the rest")]
mod broker;
mod client;
mod parts;
mod reads;
mod report;
mod rows;
mod services;
mod start;

use anyhow::Result;
use parts::Part;
use std::path::Path;

const PARTS: &[Part] = &[
    ("accept", accept::run),
    ("reads", reads::run),
    ("start", start::run),
    ("services", services::run),
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, file, address] = arguments.as_slice()
        && word == broker::SERVE_BYTES
    {
        return actix_web::rt::System::new().block_on(broker::serve_bytes(file, address));
    }
    parts::run("chandler-bench-", PARTS, &arguments, clean)
}

/// Stops instances whose broker is gone.
fn clean(dir: &Path) {
    let data = services::data_dir(dir);
    if data.exists() {
        broker::stop_instances(&data);
    }
}
