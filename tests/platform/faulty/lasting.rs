//! An outage that outlasts the operation, from each of its requests on.
//!
//! A bind ends as failed with everything undone; a rotation ends with one set of credentials that works and is the one in
//! the vault; an unbind has closed what it could reach, says that it failed, and the next one or the broker's sweep finds the rest.

use super::proxy::{Fault, Kind};
use super::stage::{Stage, Work, client};
use super::{Run, runs};
use crate::whole::{VaultPlace, connect, until};
use futures::future::join_all;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The shortest patience a plan can have, and a little.
const PATIENCE: Duration = Duration::from_secs(62);

fn is_bind(run: &&Run) -> bool {
    run.work == Work::Bind
}

/// What an outage from this run's request on leaves standing.
async fn hands_off(stage: &Stage, unbinds: &[&Run]) {
    until("the users of bindings that end are gone", async || {
        let there = stage.there().await;
        unbinds
            .iter()
            .all(|run| !there.users.contains_key(&client(&run.binding)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_that_lasts_from_any_request_on_leaves_nothing_half_granted() {
    let stage = Stage::begin("lasting", VaultPlace::testbed()).await;
    let mut requests = stage.clean_run().await;
    // The bind is done when its answer cannot be put together.
    requests
        .get_mut(&Work::Bind)
        .unwrap()
        .retain(|request| !request.ends_with("/client-secret"));
    let runs = runs(&requests, &[Kind::Cut, Kind::Error, Kind::Stuck, Kind::Lost]);
    let of = |work: Work| {
        runs.iter()
            .filter(move |run| run.work == work)
            .collect::<Vec<_>>()
    };
    let (rotations, unbinds) = (of(Work::Rotate), of(Work::Unbind));
    // Those that are rotated or end were bound before.
    stage.faults.begin([]);
    let bound: Vec<String> = runs
        .iter()
        .filter(|run| !is_bind(run))
        .map(|run| run.binding.clone())
        .collect();
    for end in join_all(bound.iter().map(|binding| stage.carry_out(Work::Bind, binding))).await {
        assert_eq!(end, "succeeded");
    }
    let held: BTreeMap<_, _> = bound.iter().cloned().zip(stage.all_enter(&bound).await).collect();

    let faults = runs.iter().map(|run| {
        let fault = Fault::new(run.at, usize::MAX, run.kind.clone());
        (client(&run.binding), fault)
    });
    stage.faults.begin(faults);
    let began = Instant::now();
    let orders = join_all(runs.iter().map(|run| async {
        let (status, told) = stage.order(run.work, &run.binding).await;
        (status, told["operation"].as_str().map(str::to_owned))
    }));
    let meanwhile = async {
        // While it lasts: who is unbound cannot get in, whichever server is away.
        hands_off(&stage, &unbinds).await;
        for run in &unbinds {
            let held = &held[&run.binding];
            assert!(connect(&held.secret).await.is_err(), "{}", run.binding);
        }
        // Rotations: who reads the vault gets credentials that work.
        for run in &rotations {
            let read = stage.read_as(&held[&run.binding]).await;
            connect(&read)
                .await
                .unwrap_or_else(|why| panic!("{}: {why}", run.binding));
        }
    };
    let (orders, ()) = tokio::join!(orders, meanwhile);
    tokio::time::sleep(PATIENCE.saturating_sub(began.elapsed())).await;

    // A rotation has more patience than a test: its operator ends it.
    let mut cancelled = 0;
    for (run, (status, operation)) in runs.iter().zip(&orders) {
        if run.work == Work::Rotate && *status == 202 {
            let done = stage
                .mission
                .run(&["operations", "cancel", operation.as_deref().unwrap()]);
            cancelled += usize::from(done.status.success());
        }
    }
    // Binds are being undone, and cannot be done with it where the server is still away; the user goes at any rate.
    let binds = of(Work::Bind);
    hands_off(&stage, &binds).await;
    let mut undoing = 0;
    for run in &binds {
        let (_, told) = stage.last(&run.binding, None).await;
        assert_ne!(told["state"], "succeeded", "{}: {told}", run.binding);
        undoing += usize::from(told["state"] == "in progress");
    }
    println!(
        "{undoing} of {} binds wait for their undoing, {cancelled} rotations cancelled",
        binds.len()
    );
    let met = stage.faults.lift();

    let ends = join_all(runs.iter().zip(&orders).map(|(run, (status, operation))| async {
        if *status == 200 || *status == 201 {
            return "succeeded".to_owned();
        }
        stage.ended(&run.binding, operation.as_deref()).await.0
    }))
    .await;
    let mut table: BTreeMap<(Work, &str, &str), (usize, usize)> = BTreeMap::new();
    for (run, end) in runs.iter().zip(&ends) {
        let met = met[&client(&run.binding)];
        assert!(met > 0, "{}: nothing was spoilt", run.binding);
        let row = table.entry((run.work, run.kind.word(), end)).or_default();
        *row = (row.0 + 1, row.1 + met);
        if run.work == Work::Bind {
            assert_eq!(end, "failed", "{}", run.binding);
            let (status, told) = stage.ask("GET", &stage.path(&run.binding), json!({})).await;
            assert_eq!(status, 404, "{}: {told}", run.binding);
        }
    }
    for ((work, kind, end), (count, met)) in &table {
        println!("{work:?}\t{kind}\t{count} {end}\t{met} requests spoilt");
    }
    // What an unbind left open is closed by the next one, or by the broker itself where nobody asks again.
    for (run, end) in runs.iter().zip(&ends) {
        if run.work == Work::Unbind && end != "succeeded" && run.kind.word() != "cut" {
            assert_eq!(stage.carry_out(Work::Unbind, &run.binding).await, "succeeded");
        }
    }
    // Nothing of the failed binds and the unbinds is anywhere; each rotated one is whole, in whichever generation.
    let left: Vec<String> = rotations.iter().map(|run| run.binding.clone()).collect();
    let there = stage.comes_to_any("after the outage", &left).await;
    for (run, end) in runs.iter().zip(&ends).filter(|(run, _)| run.work == Work::Rotate) {
        let version = if end == "succeeded" { 2 } else { 1 };
        assert_eq!(there.secrets[&client(&run.binding)], version, "{}", run.binding);
    }
    stage.all_enter(&left).await;
    for run in &unbinds {
        stage.is_out(&held[&run.binding]).await;
    }
    // They are good for all that comes after.
    for work in [Work::Rotate, Work::Unbind] {
        for end in join_all(left.iter().map(|binding| stage.carry_out(work, binding))).await {
            assert_eq!(end, "succeeded", "{work:?}");
        }
    }
    stage.comes_to("at the end", 0, &[]).await;
    for binding in &left {
        stage.is_out(&held[binding]).await;
    }
    stage.end().await;
}
