//! A thousand instances in flight at once: objects without pods, which are ready when this program opens their gate.
//!
//! They share one namespace: a namespace for each would measure the controller that removes namespaces.

use crate::broker::{Broker, cpu};
use crate::cluster::{Act, Metrics};
use crate::report::{Limit, Report, median};
use crate::room::{Room, SENT, Tenancy};
use crate::rows::Wanted;
use crate::work::{self, Instance};
use anyhow::{Context, Result, bail, ensure};
use chandler::domain::names;
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Row as _};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Instances in flight; the variable chooses fewer for a first look.
const INSTANCES: u64 = 1000;
const INSTANCES_VARIABLE: &str = "CHANDLER_BENCH_INSTANCES";
/// Clients that ask the broker at once.
const CLIENTS: usize = 32;
/// Requests on their way in the loop over the API server alone: as many as the broker allows itself.
const AT_ONCE: usize = 32;
/// Looks at last_operation, and how often they are counted.
const POLLS: usize = 1000;
const WINDOWS: usize = 3;
/// Longest wait for all of them to get somewhere.
const PATIENCE: Duration = Duration::from_mins(4);
/// How long all wait at the gate while memory and processor are looked at.
const WAIT: Duration = Duration::from_secs(15);
/// What controllers get to end their work in, before something else is measured.
const SETTLE: Duration = Duration::from_secs(3);

const MANAGED: &str = "app.kubernetes.io/managed-by=chandler";
const ALONE: &str = "app.kubernetes.io/managed-by=chandler-bench";

/// Kinds an instance has, and where they are.
const KINDS: [(&str, &str); 6] = [
    ("Secret", "/api/v1/namespaces/{}/secrets"),
    ("ConfigMap", "/api/v1/namespaces/{}/configmaps"),
    ("Service", "/api/v1/namespaces/{}/services"),
    ("ServiceAccount", "/api/v1/namespaces/{}/serviceaccounts"),
    (
        "NetworkPolicy",
        "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    ),
    ("StatefulSet", "/apis/apps/v1/namespaces/{}/statefulsets"),
];

fn path(kind: &str, namespace: &str) -> String {
    let found = KINDS.iter().find(|(name, _)| *name == kind);
    found.map_or_else(String::new, |(_, path)| path.replace("{}", namespace))
}

/// Measures and reports.
pub fn run(dir: &Path, report: &mut Report) -> Result<()> {
    let count = match std::env::var(INSTANCES_VARIABLE) {
        Ok(text) => text.parse().context(INSTANCES_VARIABLE)?,
        Err(_) => INSTANCES,
    };
    let room = Room::open(dir, "fleet", Tenancy::Shared, Some(&folder()))?;
    let before_any = room.admin.metrics()?;
    let broker = room.broker()?;
    let wanted = Wanted::of(&broker.call("GET", "/v2/catalog", "")?.body, "fleet")?;
    let numbered: Vec<(Instance, String)> = (0..count)
        .map(|n| {
            let (id, own) = room.instance(n);
            (Instance::new(&id, &wanted), own)
        })
        .collect();
    let fleet = Fleet {
        room: &room,
        numbered: &numbered,
    };

    let one = fleet.one(&broker, report)?;
    let alone_before = one.alone(&room, count, 0)?;
    let applied = fleet.accept(&broker, &one, report)?;
    fleet.wait(&broker, report)?;
    let watched = (watches(&broker)?, one.watched);
    let (now, began) = (held(&room.admin.metrics()?), held(&before_any));
    report.add(
        format!("watches that {count} instances have beyond those of one"),
        format!(
            "{} and {}; the API server holds {:.0} of these kinds more than before",
            watched.0,
            watched.1,
            now - began
        ),
        f64::from(watched.0) - f64::from(watched.1),
        "",
        Limit::AtMost(0.0),
    );
    let alone_after = one.alone(&room, count, count)?;
    let alone = median(&[alone_before, alone_after]);
    report.add(
        "objects applied, of a loop of the same over the API server alone",
        format!(
            "{:.0}/s of {alone:.0}/s ({alone_before:.0} before, {alone_after:.0} after); processor {}",
            applied.rate, applied.processor
        ),
        applied.rate / alone,
        "",
        Limit::AtLeast(0.5),
    );
    let broker = fleet.crash(broker, report)?;
    fleet.remove(&broker, report)
}

/// The folder of the offering.
fn folder() -> PathBuf {
    crate::broker::catalog_dir().join("bench/kube")
}

/// How fast objects were applied, and who worked for it.
struct Applied {
    rate: f64,
    processor: String,
}

struct Fleet<'a> {
    room: &'a Room,
    /// The instances with their own names.
    numbered: &'a [(Instance, String)],
}

impl Fleet<'_> {
    /// One instance, waiting at its gate: what it is made of, and that looking at it costs nothing.
    fn one(&self, broker: &Broker, report: &mut Report) -> Result<One> {
        let (instance, own) = self.numbered.first().context("no instance")?;
        work::accepted(broker, &instance.put)?;
        let began = Instant::now();
        while !work::last(broker, instance)?.1.contains("StatefulSet") {
            ensure!(
                began.elapsed() < PATIENCE,
                "the first instance does not get to its gate"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        std::thread::sleep(SETTLE);
        let mut requests = Vec::new();
        for _ in 0..WINDOWS {
            let before = self.room.counts(broker)?;
            let calls = vec![instance.poll.clone(); POLLS];
            work::each(broker, CLIENTS, calls, 200)?;
            let after = self.room.counts(broker)?;
            requests.push((after.broker - before.broker).max(after.server - before.server));
        }
        report.add(
            format!("requests to the API server during {POLLS} looks at last_operation"),
            format!("broker's and API server's count; median of {WINDOWS}: {requests:.0?}"),
            median(&requests),
            "",
            Limit::AtMost(0.0),
        );
        let room = self.room;
        let templates = documents()?;
        let mut objects = Vec::new();
        for (kind, _) in KINDS {
            let labels = format!("{MANAGED},chandler.osb/instance={own}");
            for live in room.admin.list(&path(kind, &room.shared), &labels)? {
                objects.push((kind, as_sent(kind, &live, &templates)));
            }
        }
        Ok(One {
            own: own.clone(),
            applies: applies(broker)?,
            objects,
            watched: watches(broker)?,
        })
    }

    /// All the others, until every object of theirs was applied.
    fn accept(&self, broker: &Broker, one: &One, report: &mut Report) -> Result<Applied> {
        let room = self.room;
        let others: Vec<_> = self.numbered.iter().skip(1).map(|(i, _)| i.put.clone()).collect();
        let (all, each) = (count(self.numbered.len()), total(&one.applies));
        let wanted = all * each;
        let processors = Processors::now(broker)?;
        let before = room.counts(broker)?;
        let began = Instant::now();
        let accepting = work::each(broker, CLIENTS, others, 202)?;
        loop {
            let done = total(&applies(broker)?);
            if done >= wanted {
                break;
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "{done} of {wanted} objects were applied in time"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        let took = began.elapsed().as_secs_f64();
        let processor = processors.since(broker, took)?;
        // What came too often comes now.
        std::thread::sleep(SETTLE);
        let ended = finished(broker, "provision")?;
        ensure!(ended == 0.0, "{ended} instances did not wait for their gate");
        let mut wrong = 0.0;
        let now = applies(broker)?;
        for (kind, once) in &one.applies {
            let there = room.admin.list(&path(kind, &room.shared), MANAGED)?.len();
            wrong += (now.get(kind).copied().unwrap_or_default() - once * all).abs();
            wrong += (count(there) - once * all).abs();
        }
        let sent = room.counts(broker)?;
        report.add(
            "objects applied twice or not at all",
            format!(
                "{wanted:.0} of {} kinds in {took:.1} s, {all:.0} instances accepted in {:.1} s; API server and broker disagree on {:.0} of {:.0} requests",
                one.applies.len(),
                accepting.as_secs_f64(),
                sent.apart(&before),
                sent.broker - before.broker,
            ),
            wrong,
            "",
            Limit::AtMost(0.0),
        );
        Ok(Applied {
            rate: (wanted - each) / took,
            processor,
        })
    }

    /// All wait at the gate.
    fn wait(&self, broker: &Broker, report: &mut Report) -> Result<()> {
        let (cpu, sent) = (broker.process.cpu()?, Room::of_broker(broker)?.sum(SENT, &[]));
        std::thread::sleep(WAIT);
        let (cpu, sent) = (
            broker.process.cpu()? - cpu,
            Room::of_broker(broker)?.sum(SENT, &[]) - sent,
        );
        let seconds = WAIT.as_secs_f64();
        report.add(
            format!(
                "resident memory with {} instances in flight, at its highest",
                self.numbered.len()
            ),
            format!(
                "{:.0} MB while all wait, then with {:.0} % of a processor and {:.1} requests/s",
                broker.process.resident()?,
                cpu / seconds * 100.0,
                sent / seconds
            ),
            broker.process.peak()?,
            " MB",
            Limit::AtMost(150.0),
        );
        Ok(())
    }

    /// The broker is killed; all gates open; it comes back.
    fn crash(&self, broker: Broker, report: &mut Report) -> Result<Broker> {
        let room = self.room;
        broker.process.crash()?;
        let sets = path("StatefulSet", &room.shared);
        let open = Arc::new(json!({"metadata": {"annotations": {"chandler.osb/bench-gate": "open"}}}));
        let gates = self.numbered.iter();
        let gates = gates.map(|(_, own)| Act::Merge(sets.clone(), format!("fleet-{own}"), open.clone()));
        room.admin.each(gates.collect(), AT_ONCE)?;
        std::thread::sleep(SETTLE);
        let (started, wall) = (Instant::now(), millis()?);
        let broker = room.broker()?;
        let all = count(self.numbered.len());
        until(&broker, "provision", all)?;
        let took = started.elapsed().as_secs_f64();
        let first = first_record(&room.database(), wall)?;
        report.add(
            format!("killed with {all:.0} instances in flight: start to first progress recorded"),
            format!(
                "answering after {:.2} s; all ready after {took:.1} s; {:.0} MB at most",
                broker.ready_after.as_secs_f64(),
                broker.process.peak()?
            ),
            first,
            " s",
            Limit::AtMost(5.0),
        );
        Ok(broker)
    }

    /// Everything goes.
    fn remove(&self, broker: &Broker, report: &mut Report) -> Result<()> {
        let room = self.room;
        let before = Room::of_broker(broker)?.sum(SENT, &[]);
        let began = Instant::now();
        let calls = self.numbered.iter().map(|(instance, _)| instance.delete.clone());
        work::each(broker, CLIENTS, calls.collect(), 202)?;
        let all = count(self.numbered.len());
        until(broker, "deprovision", all)?;
        let took = began.elapsed().as_secs_f64();
        let sent = Room::of_broker(broker)?.sum(SENT, &[]) - before;
        let mut left = 0;
        for (kind, _) in KINDS {
            left += room.admin.list(&path(kind, &room.shared), MANAGED)?.len();
        }
        report.add(
            format!("objects left when all {all:.0} instances are deleted"),
            format!("deleted in {took:.1} s with {:.0} requests each", sent / all),
            count(left),
            "",
            Limit::AtMost(0.0),
        );
        Ok(())
    }
}

/// What one instance is made of.
struct One {
    own: String,
    /// How often each kind is applied.
    applies: BTreeMap<String, f64>,
    objects: Vec<(&'static str, Value)>,
    watched: u32,
}

impl One {
    /// The same objects under other names, half as many as the broker makes, in a loop: applied in a second.
    ///
    /// They carry another label, so that the broker does not see them.
    fn alone(&self, room: &Room, instances: u64, first: u64) -> Result<f64> {
        let mut acts = Vec::new();
        for n in first..first + instances.div_ceil(2) {
            let own = names::iid("alone", &n.to_string());
            for (kind, object) in &self.objects {
                let text = object.to_string().replace(&self.own, &own);
                let mut object: Value = serde_json::from_str(&text)?;
                object["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "chandler-bench".into();
                let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                acts.push(Act::Apply(path(kind, &room.shared), name, Arc::new(object)));
            }
        }
        let sent = acts.len();
        let took = room.account.each(acts, AT_ONCE)?;
        let clear = |(_, at): &(&str, &str)| Act::Clear(at.replace("{}", &room.shared), ALONE.to_owned());
        room.admin.each(KINDS.iter().map(clear).collect(), KINDS.len())?;
        let began = Instant::now();
        for (kind, _) in KINDS {
            while !room.admin.list(&path(kind, &room.shared), ALONE)?.is_empty() {
                ensure!(
                    began.elapsed() < PATIENCE,
                    "objects of the loop do not go: {kind}"
                );
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        std::thread::sleep(SETTLE);
        Ok(count(sent) / took.as_secs_f64())
    }
}

/// The documents of the offering, as they stand in its folder.
fn documents() -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(folder().join("catalog/fleet/objects/fleet.yaml"))?;
    text.split("\n---\n")
        .map(|document| Ok(serde_saphyr::from_str(document)?))
        .collect()
}

/// A live object without what the API server added to it.
fn as_sent(kind: &str, live: &Value, templates: &[Value]) -> Value {
    let mut sent = match templates.iter().find(|template| template["kind"] == kind) {
        Some(template) => like(live, template),
        None => live.clone(),
    };
    let metadata = &live["metadata"];
    sent["apiVersion"] = match kind {
        "NetworkPolicy" => "networking.k8s.io/v1",
        "StatefulSet" => "apps/v1",
        _ => "v1",
    }
    .into();
    sent["kind"] = kind.into();
    sent["metadata"] = json!({
        "name": metadata["name"], "namespace": metadata["namespace"],
        "labels": metadata["labels"], "annotations": metadata["annotations"],
    });
    if let Some(members) = sent.as_object_mut() {
        members.retain(|name, _| !matches!(name.as_str(), "status" | "ready"));
    }
    sent
}

/// Those members of `live` that `template` has too.
fn like(live: &Value, template: &Value) -> Value {
    match (live, template) {
        (Value::Object(live), Value::Object(template)) => live
            .iter()
            .filter_map(|(name, member)| Some((name.clone(), like(member, template.get(name)?))))
            .collect(),
        (Value::Array(live), Value::Array(template)) => live
            .iter()
            .zip(template)
            .map(|(live, template)| like(live, template))
            .collect(),
        _ => live.clone(),
    }
}

/// Applies by kind that the server took.
fn applies(broker: &Broker) -> Result<BTreeMap<String, f64>> {
    Ok(Room::of_broker(broker)?.by(SENT, &[("verb", "apply"), ("outcome", "2xx")], "kind"))
}

/// Kinds the broker has opened a watch on.
fn watches(broker: &Broker) -> Result<u32> {
    let opened = Room::of_broker(broker)?.by(SENT, &[("verb", "watch"), ("outcome", "2xx")], "kind");
    Ok(u32::try_from(opened.len())?)
}

/// Watches the API server holds on kinds an instance has, whoever opened them.
fn held(metrics: &Metrics) -> f64 {
    [
        "pods",
        "services",
        "statefulsets",
        "persistentvolumeclaims",
        "deployments",
        "jobs",
        "namespaces",
    ]
    .into_iter()
    .map(|resource| {
        metrics.sum(
            "apiserver_longrunning_requests",
            &[("verb", "WATCH"), ("resource", resource)],
        )
    })
    .sum()
}

/// Operations of a kind that succeeded in this process of the broker; one that failed ends the benchmark.
fn finished(broker: &Broker, kind: &str) -> Result<f64> {
    let metrics = Room::of_broker(broker)?;
    let ended = |outcome| {
        let labels = [("kind", kind), ("outcome", outcome)];
        metrics.sum("chandler_operations_finished_total", &labels)
    };
    if ended("failed") > 0.0 {
        bail!("{} operations failed: {kind}", ended("failed"));
    }
    Ok(ended("succeeded"))
}

fn until(broker: &Broker, kind: &str, wanted: f64) -> Result<()> {
    let began = Instant::now();
    loop {
        let done = finished(broker, kind)?;
        if done >= wanted {
            return Ok(());
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "{done} of {wanted} operations ended in time: {kind}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Seconds from `since` to the first line of any operation's history after it.
fn first_record(database: &Path, since: i64) -> Result<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let first: i64 = runtime.block_on(async {
        let options = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(database)
            .read_only(true);
        let mut connection = options.connect().await?;
        let row = sqlx::query("SELECT min(at) FROM operation_events WHERE at >= ?")
            .bind(since)
            .fetch_one(&mut connection)
            .await?;
        anyhow::Ok(row.try_get(0)?)
    })?;
    Ok(Duration::from_millis(u64::try_from(first - since)?).as_secs_f64())
}

/// Milliseconds since 1970, as the broker writes them.
fn millis() -> Result<i64> {
    Ok(i64::try_from(
        SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis(),
    )?)
}

/// Processor time of the broker and of those who work for the API server.
struct Processors {
    broker: f64,
    others: Vec<(&'static str, u32, f64)>,
}

impl Processors {
    fn now(broker: &Broker) -> Result<Self> {
        let mut others = Vec::new();
        if let Ok(run) = std::env::var("CHANDLER_TESTBED_RUN") {
            for name in ["kube-apiserver", "etcd", "kube-controller-manager"] {
                let text = std::fs::read_to_string(Path::new(&run).join("pid").join(name))?;
                let id = text.split_whitespace().next().unwrap_or_default().parse()?;
                others.push((name, id, cpu(id)?));
            }
        }
        Ok(Self {
            broker: broker.process.cpu()?,
            others,
        })
    }

    fn since(&self, broker: &Broker, seconds: f64) -> Result<String> {
        let share = |used: f64| format!("{:.0} %", used / seconds * 100.0);
        let mut text = format!("broker {}", share(broker.process.cpu()? - self.broker));
        for (name, id, before) in &self.others {
            text = format!("{text}, {name} {}", share(cpu(*id)? - before));
        }
        Ok(text)
    }
}

fn total(by: &BTreeMap<String, f64>) -> f64 {
    by.values().sum()
}

#[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
fn count(n: usize) -> f64 {
    n as f64
}
