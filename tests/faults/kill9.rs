//! `kill -9` of the broker at random moments, again and again, while platforms keep asking.
//!
//! Lanes are platforms with one instance each that do what platforms do: create, bind, use, rotate, update, unbind,
//! delete. They know nothing of the kills: a request that is not answered is repeated, as a platform would. The
//! killer strikes while a request of the kind that was struck least is on its way, and notes what the rows say was
//! being done. After every round nothing may be left over and nothing missing.
//!
//! `CHANDLER_TEST_KILLS` sets the number of kills (200), `CHANDLER_TEST_SEED` the seed.

use crate::support::audit::{Expected, State};
use crate::support::clients::{self, Access};
use crate::support::home::Home;
use crate::support::platform::{
    Answer, End, Platform, Service, bind_body, binding, ids, instance, provision_body,
};
use crate::support::process::Broker;
use crate::support::{Dice, number, seed};
use serde_json::{Value, json};
use sqlx::{Connection, Row, SqliteConnection};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The kinds of request, in the words of the issue.
const KINDS: [&str; 6] = ["create", "update", "bind", "rotate", "unbind", "delete"];
/// Kills in a round; after each the books are compared.
const ROUND: u64 = 40;
/// Bindings an instance has at most.
const BINDINGS: usize = 3;

/// Requests on their way, by kind.
#[derive(Clone, Default)]
struct Underway(Arc<Mutex<BTreeMap<&'static str, usize>>>);

struct Sent(Underway, &'static str);

impl Underway {
    fn send(&self, kind: &'static str) -> Sent {
        *self.0.lock().unwrap().entry(kind).or_default() += 1;
        Sent(self.clone(), kind)
    }

    fn has(&self, kind: &str) -> bool {
        self.0.lock().unwrap().get(kind).is_some_and(|n| *n > 0)
    }

    fn any(&self) -> bool {
        self.0.lock().unwrap().values().any(|n| *n > 0)
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap().get_mut(self.1).unwrap() -= 1;
    }
}

struct Bound {
    id: String,
    credentials: Value,
}

struct Live {
    id: String,
    bindings: Vec<Bound>,
    /// Credentials that must not work any more.
    revoked: Vec<Value>,
    /// The key and value written last.
    kept: Option<(String, String)>,
}

/// One platform with one instance at a time.
struct Lane {
    name: &'static str,
    service: Service,
    /// Of a hundred steps so many end the instance.
    ends: u64,
    platform: Platform,
    underway: Underway,
    dice: Dice,
    count: u64,
    live: Option<Live>,
    done: BTreeMap<&'static str, u64>,
    repeated: Arc<AtomicU64>,
}

impl Lane {
    fn next_name(&mut self, what: &str) -> String {
        self.count += 1;
        format!("{}-{what}{}", self.name, self.count)
    }

    fn note(&mut self, kind: &'static str) {
        *self.done.entry(kind).or_default() += 1;
    }

    /// A request of a kind that changes something, repeated until it is answered.
    async fn change(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        if let Ok(answer) = self.platform.send(method, path, body).await
            && answer.status != 503
        {
            return answer;
        }
        self.repeated.fetch_add(1, Ordering::Relaxed);
        self.platform.sure(method, path, body).await
    }

    async fn end(&self, answer: &Answer, path: &str, what: &str) {
        let end = self.platform.ended(answer, path).await;
        assert_eq!(end, End::Succeeded, "{}: {what} {path}", self.name);
    }

    /// Until told to stop, one thing after the other.
    async fn run(mut self, stop: Arc<AtomicBool>) -> Self {
        while !stop.load(Ordering::SeqCst) {
            self.step().await;
        }
        self
    }

    async fn step(&mut self) {
        let Some(live) = &self.live else {
            return self.create().await;
        };
        let bound = live.bindings.len();
        match self.dice.below(100) {
            n if n < self.ends => self.delete().await,
            n if n < self.ends + 15 => self.update().await,
            n if n < self.ends + 35 && bound > 0 => self.unbind().await,
            _ if bound >= BINDINGS => self.unbind().await,
            _ if bound > 0 && self.dice.once_in(2) => self.bind(true).await,
            _ => self.bind(false).await,
        }
    }

    async fn create(&mut self) {
        let id = self.next_name("i");
        let path = instance(&id);
        let asked = self.underway.send("create");
        let body = provision_body(self.service, json!({}));
        let answer = self
            .change("PUT", &format!("{path}?accepts_incomplete=true"), Some(&body))
            .await;
        let answer = answer.expect(&[200, 201, 202]);
        if self.dice.once_in(6) {
            // The user changed his mind before it was done.
            tokio::time::sleep(Duration::from_millis(self.dice.below(150))).await;
            drop(asked);
            self.live = Some(Live {
                id,
                bindings: vec![],
                revoked: vec![],
                kept: None,
            });
            return self.delete().await;
        }
        self.end(&answer, &path, "create").await;
        self.live = Some(Live {
            id,
            bindings: vec![],
            revoked: vec![],
            kept: None,
        });
        self.note("create");
    }

    async fn bind(&mut self, rotate: bool) {
        let binding_id = self.next_name("b");
        let live = self.live.as_ref().unwrap();
        let kind = if rotate { "rotate" } else { "bind" };
        let predecessor = live.bindings.last().map(|b| b.id.clone()).filter(|_| rotate);
        let more = predecessor.map_or(json!({}), |id| json!({"predecessor_binding_id": id}));
        let path = binding(&live.id, &binding_id);
        let body = bind_body(self.service, more);
        let asked = self.underway.send(kind);
        let mut answer = None;
        if self.dice.once_in(4) {
            // A platform that waits for its answer; when it gets none it asks again, and is ready to wait then.
            answer = self
                .platform
                .send("PUT", &path, Some(&body))
                .await
                .ok()
                .filter(|a| matches!(a.status, 200 | 201));
        }
        let answer = match answer {
            Some(answer) => answer,
            None => {
                self.change("PUT", &format!("{path}?accepts_incomplete=true"), Some(&body))
                    .await
            }
        };
        let answer = answer.expect(&[200, 201, 202]);
        self.end(&answer, &path, kind).await;
        let told = answer.body["credentials"].clone();
        let credentials = self.platform.get(&path).await.expect(&[200]).body["credentials"].clone();
        assert!(
            told.is_null() || told == credentials,
            "{}: the credentials changed",
            self.name
        );
        drop(asked);
        clients::comes_to(self.service, &credentials, Access::In).await;
        let value = format!("value of {binding_id}");
        let live = self.live.as_mut().unwrap();
        if let Some((key, value)) = &live.kept {
            let found = clients::read(self.service, &credentials, key).await;
            assert_eq!(
                found.as_ref(),
                Some(value),
                "{}: what another binding wrote",
                self.name
            );
        }
        clients::write(self.service, &credentials, &binding_id, &value).await;
        live.kept = Some((binding_id.clone(), value));
        live.bindings.push(Bound {
            id: binding_id,
            credentials,
        });
        self.note(kind);
    }

    async fn unbind(&mut self) {
        let live = self.live.as_mut().unwrap();
        let which = usize::try_from(self.dice.below(live.bindings.len() as u64)).unwrap();
        let bound = live.bindings.remove(which);
        let path = binding(&live.id, &bound.id);
        let asked = self.underway.send("unbind");
        let answer = self
            .change("DELETE", &format!("{path}?{}", ids(self.service)), None)
            .await;
        let answer = answer.expect(&[200, 202, 410]);
        self.end(&answer, &path, "unbind").await;
        drop(asked);
        clients::comes_to(self.service, &bound.credentials, Access::Refused).await;
        self.live.as_mut().unwrap().revoked.push(bound.credentials);
        self.note("unbind");
        self.all_well().await;
    }

    async fn update(&mut self) {
        let path = instance(&self.live.as_ref().unwrap().id);
        let parameters = self.service.change(self.dice.below(1000));
        let body = json!({"service_id": self.service.ids().0, "parameters": parameters});
        let asked = self.underway.send("update");
        let answer = self
            .change("PATCH", &format!("{path}?accepts_incomplete=true"), Some(&body))
            .await;
        let answer = answer.expect(&[200, 202]);
        self.end(&answer, &path, "update").await;
        drop(asked);
        let now = self.platform.get(&path).await.expect(&[200]).body["parameters"].clone();
        for (name, value) in parameters.as_object().unwrap() {
            assert_eq!(&now[name], value, "{}: {name} after an update", self.name);
        }
        self.note("update");
        self.all_well().await;
    }

    async fn delete(&mut self) {
        let live = self.live.take().unwrap();
        let path = instance(&live.id);
        let asked = self.underway.send("delete");
        let answer = self
            .change("DELETE", &format!("{path}?{}", ids(self.service)), None)
            .await;
        let answer = answer.expect(&[200, 202, 410]);
        self.end(&answer, &path, "delete").await;
        drop(asked);
        for bound in &live.bindings {
            assert_ne!(
                clients::access(self.service, &bound.credentials).await,
                Access::In,
                "{}",
                self.name
            );
        }
        self.note("delete");
    }

    /// Credentials that should work do, revoked ones do not, and the data is there.
    async fn all_well(&self) {
        let Some(live) = &self.live else { return };
        for bound in &live.bindings {
            clients::comes_to(self.service, &bound.credentials, Access::In).await;
        }
        for revoked in live.revoked.iter().rev().take(5) {
            clients::comes_to(self.service, revoked, Access::Refused).await;
        }
        if let (Some((key, value)), Some(bound)) = (&live.kept, live.bindings.first()) {
            let found = clients::read(self.service, &bound.credentials, key).await;
            assert_eq!(
                found.as_ref(),
                Some(value),
                "{}: data written through a binding",
                self.name
            );
        }
    }

    fn expected(&self) -> Option<Expected> {
        self.live.as_ref().map(|live| Expected {
            service: self.service,
            id: live.id.clone(),
            bindings: live.bindings.iter().map(|b| b.id.clone()).collect(),
        })
    }
}

/// What was struck: kind of request, and kind and step of the operations that were open.
#[derive(Default)]
struct Tally {
    kinds: BTreeMap<String, u64>,
    steps: BTreeMap<(String, String), u64>,
    kills: u64,
    idle: u64,
    waited: Duration,
    starting: Duration,
}

struct Killer<'a> {
    home: &'a Home,
    broker: &'a mut Broker,
    underway: Underway,
    dice: Dice,
    tally: Tally,
}

impl Killer<'_> {
    /// Strikes `times` times.
    async fn strike(&mut self, times: u64) {
        for _ in 0..times {
            let least = |tally: &Tally| {
                let count = |kind: &str| tally.kinds.get(kind).copied().unwrap_or_default();
                KINDS.into_iter().min_by_key(|kind| count(kind)).unwrap()
            };
            let wanted = least(&self.tally);
            let begun = Instant::now();
            let end = begun + Duration::from_millis(800);
            while !self.underway.has(wanted) && (Instant::now() < end || !self.underway.any()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
                assert!(
                    Instant::now() < end + Duration::from_secs(60),
                    "nobody asks for anything any more"
                );
            }
            let within = *self.dice.pick(&[30, 120, 400]);
            tokio::time::sleep(Duration::from_millis(self.dice.below(within))).await;
            let waited = begun.elapsed();
            self.broker.kill9();
            self.count().await;
            let down = Instant::now();
            tokio::task::block_in_place(|| self.broker.again());
            self.tally.waited += waited;
            self.tally.starting += down.elapsed();
        }
    }

    /// Reads what was open from a copy: opening the file itself would mend what the broker is to mend.
    async fn count(&mut self) {
        self.tally.kills += 1;
        let copy = self.home.path().join("copy.db");
        for end in ["", "-wal"] {
            let from = self.home.data().join(format!("chandler.db{end}"));
            let to = self.home.path().join(format!("copy.db{end}"));
            let _ = std::fs::remove_file(&to);
            if from.exists() {
                std::fs::copy(from, to).unwrap();
            }
        }
        let _ = std::fs::remove_file(self.home.path().join("copy.db-shm"));
        let mut db = SqliteConnection::connect(&format!("sqlite://{}", copy.display()))
            .await
            .unwrap();
        let rows = sqlx::query(
            "SELECT o.kind, o.step, b.requested LIKE '%\"predecessor_binding_id\":\"%' FROM operations o \
             LEFT JOIN bindings b ON b.bid = o.bid WHERE o.state = 'open'",
        )
        .fetch_all(&mut db)
        .await
        .unwrap();
        db.close().await.unwrap();
        self.tally.idle += u64::from(rows.is_empty());
        for row in rows {
            let (kind, step): (String, String) = (row.get(0), row.get(1));
            let rotates: Option<bool> = row.get(2);
            let word = match kind.as_str() {
                "provision" => "create",
                "deprovision" => "delete",
                "bind" if rotates == Some(true) => "rotate",
                other => other,
            };
            *self.tally.kinds.entry(word.to_owned()).or_default() += 1;
            *self.tally.steps.entry((word.to_owned(), step)).or_default() += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_it_goes_on_where_it_was() {
    let (kills, seed) = (number("CHANDLER_TEST_KILLS").unwrap_or(200), seed());
    println!("kills {kills}, seed {seed} (CHANDLER_TEST_KILLS, CHANDLER_TEST_SEED)");
    let begun = Instant::now();
    let home = Home::new();
    let mut broker = Broker::dev(&home);
    let platform = Platform::dev(&broker, &home);
    let underway = Underway::default();
    let repeated = Arc::new(AtomicU64::new(0));
    let mut lanes: Vec<Lane> = [
        ("redis-short", Service::Redis, 30),
        ("redis-long", Service::Redis, 2),
        ("nats-short", Service::Nats, 30),
        ("nats-long", Service::Nats, 2),
        ("postgres", Service::Postgres, 5),
    ]
    .into_iter()
    .zip(1..)
    .map(|((name, service, ends), n)| Lane {
        name,
        service,
        ends,
        platform: platform.clone(),
        underway: underway.clone(),
        dice: Dice::new(seed.wrapping_mul(31).wrapping_add(n)),
        count: 0,
        live: None,
        done: BTreeMap::new(),
        repeated: repeated.clone(),
    })
    .collect();
    let state = State::dev(&home).await;
    let mut killer = Killer {
        home: &home,
        broker: &mut broker,
        underway,
        dice: Dice::new(seed),
        tally: Tally::default(),
    };

    while killer.tally.kills < kills {
        let stop = Arc::new(AtomicBool::new(false));
        let running: Vec<_> = lanes
            .drain(..)
            .map(|lane| tokio::spawn(lane.run(stop.clone())))
            .collect();
        let mut running = futures::future::try_join_all(running);
        let times = ROUND.min(kills - killer.tally.kills);
        tokio::select! {
            () = killer.strike(times) => {}
            // A lane only comes back before it is told to when it met something wrong.
            early = &mut running => { early.unwrap(); }
        }
        stop.store(true, Ordering::SeqCst);
        lanes = running.await.unwrap();
        state.idle().await;
        for lane in &lanes {
            lane.all_well().await;
        }
        let expected: Vec<Expected> = lanes.iter().filter_map(Lane::expected).collect();
        let wrong = state.audit(&home.instances(), &expected).await;
        assert!(wrong.is_empty(), "after {} kills: {wrong:#?}", killer.tally.kills);
        println!(
            "{} kills, {:.0} s",
            killer.tally.kills,
            begun.elapsed().as_secs_f32()
        );
    }

    for lane in &mut lanes {
        if lane.live.is_some() {
            lane.delete().await;
        }
    }
    state.idle().await;
    let wrong = state.audit(&home.instances(), &[]).await;
    assert!(wrong.is_empty(), "at the end: {wrong:#?}");
    let tally = killer.tally;
    for lane in &lanes {
        println!("{:<12} {:?}", lane.name, lane.done);
    }
    println!(
        "struck while nothing was open: {}; requests repeated: {}",
        tally.idle,
        repeated.load(Ordering::Relaxed)
    );
    for ((kind, step), times) in &tally.steps {
        println!("{kind:<8} {step:<10} {times}");
    }
    println!(
        "{} kills in {:.0} s, of these {:.0} s until the moment to strike and {:.0} s until it was ready again",
        tally.kills,
        begun.elapsed().as_secs_f32(),
        tally.waited.as_secs_f32(),
        tally.starting.as_secs_f32()
    );
    if kills >= 100 {
        for kind in KINDS {
            assert!(
                tally.kinds.get(kind).is_some_and(|n| *n >= 3),
                "{kind} was hardly struck: {:?}",
                tally.kinds
            );
        }
    }
    state.store.close().await;
    assert!(broker.stop().success());
}
