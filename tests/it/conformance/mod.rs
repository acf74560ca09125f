//! Every rule of the protocol digest that can be tested, by a test named after it (`p06_…` pins P-06).
//!
//! A rule that cannot be tested here stands in [`ELSEWHERE`] with the reason; the last test of this file fails when a
//! rule is in neither place.

mod asynchronous;
mod bind;
mod catalog;
mod common;
mod deprovision;
mod errors;
mod fetch;
mod headers;
mod identifiers;
mod last_operation;
mod order;
mod orphans;
mod provision;
mod quirks;
mod rotation;
mod unbind;
mod update;

use std::collections::BTreeSet;
use std::path::Path;

/// The rules: letter and highest number.
const RULES: [(&str, u32); 19] = [
    ("H", 10),
    ("A", 5),
    ("E", 11),
    ("I", 5),
    ("C", 18),
    ("S", 8),
    ("L", 13),
    ("K", 8),
    ("P", 18),
    ("G", 9),
    ("U", 19),
    ("B", 20),
    ("R", 4),
    ("F", 4),
    ("N", 8),
    ("D", 11),
    ("O", 4),
    ("X", 6),
    ("Z", 5),
];

/// Rules no test here can pin, and why.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "A-03",
        "a recommendation about the transport; the listener's TLS is the deployment's to set up",
    ),
    (
        "K-06",
        "speaks of a 202 without `operation`; this broker always sends one",
    ),
    (
        "P-01",
        "no plan is provisioned within the request: provisioning is always asynchronous",
    ),
    ("G-05", "parameters never hold secrets here, so none is left out"),
    (
        "U-01",
        "no change of a service is made within the request: updates are always asynchronous",
    ),
    (
        "B-08",
        "no binding is asynchronous only: without the flag it is made within the request (B-01)",
    ),
    (
        "B-13",
        "no offering streams logs, serves routes or mounts volumes, and binding files cannot name such members",
    ),
    ("B-14", "no offering is a route service"),
    ("B-15", "no offering mounts volumes"),
    ("B-20", "there are bindable offerings"),
    (
        "D-01",
        "no instance is removed within the request: deprovisioning is always asynchronous",
    ),
];

/// The rules in the name of a test: `l06_k08_told_again` pins L-06 and K-08.
fn pinned(name: &str) -> Vec<String> {
    name.split('_')
        .map_while(|word| {
            let (letter, number) = word.split_at_checked(1)?;
            let is_rule = letter.bytes().all(|b| b.is_ascii_lowercase())
                && number.len() == 2
                && number.bytes().all(|b| b.is_ascii_digit());
            is_rule.then(|| format!("{}-{number}", letter.to_uppercase()))
        })
        .collect()
}

/// The rules tests of this folder are named after. Only functions marked as tests count.
fn tested() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/conformance");
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        for pair in lines
            .windows(2)
            .filter(|pair| pair[0].starts_with("#[tokio::test") || pair[0] == "#[test]")
        {
            let name = pair[1].trim_start_matches("async ").trim_start_matches("fn ");
            found.extend(pinned(name.split('(').next().unwrap()));
        }
    }
    found
}

#[test]
fn every_rule_is_tested_or_says_why_not() {
    let tested = tested();
    let all: BTreeSet<String> = RULES
        .iter()
        .flat_map(|(letter, last)| (1..=*last).map(move |n| format!("{letter}-{n:02}")))
        .collect();
    let excused: BTreeSet<String> = ELSEWHERE.iter().map(|(rule, _)| (*rule).to_owned()).collect();
    let unknown: Vec<_> = tested
        .union(&excused)
        .filter(|rule| !all.contains(*rule))
        .collect();
    assert!(unknown.is_empty(), "no such rules: {unknown:?}");
    let missing: Vec<_> = all
        .iter()
        .filter(|rule| !tested.contains(*rule) && !excused.contains(*rule))
        .collect();
    assert!(missing.is_empty(), "neither tested nor excused: {missing:?}");
}
