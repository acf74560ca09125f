//! Random lives of instances and bindings against a small model of what a platform may be answered.
//!
//! The model knows the rules of the protocol and nothing of the broker's code: what was asked, what the answers
//! said, and what last_operation says of work that has run. Workers die, calls fail, servers stop, time passes. At
//! the end everything can be deleted and nothing is left. `CHANDLER_TEST_SEED` repeats a run, `CHANDLER_TEST_CASES`
//! sets how many lives there are.

mod rules;

use crate::support::broker::{Answer, Choices, TestBroker};
use crate::support::catalog::{ALPHA, MEDIUM, SMALL};
use crate::support::chance::{Chance, setting};
use crate::support::world::{Effect, When};
use chandler::domain::names;
use chandler::domain::operation::{OperationKind, OperationState};
use chandler::engine::Runner;
use chandler::ports::PortErrorKind;
use rules::{
    ACCEPTED, Asked, Attributes, BINDINGS, Binding, Bound, Expected, INSTANCES, Instance, NONE, State,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_order_of_events_gives_a_wrong_answer_or_leaves_anything() {
    let mut chance = Chance::for_test("model", 0xcafe);
    let lives = setting("CHANDLER_TEST_CASES", 45);
    let mut choices = Choices::default();
    choices.engine.runs_work = false;
    let broker = TestBroker::with(choices).await;
    let start = Instant::now();
    let (mut ran, mut seen) = (0, BTreeMap::new());
    while ran < lives && start.elapsed() < Duration::from_secs(20) {
        ran += 1;
        let mut life = Life {
            broker: &broker,
            name: format!("life{ran}"),
            instances: INSTANCES.map(|id| (id, Instance::new())).into(),
            told: Vec::new(),
            troubled: false,
        };
        for _ in 0..40 {
            life.step(&mut chance).await;
        }
        life.ends(&mut seen).await;
    }
    println!("{ran} lives in {:?}: {seen:#?}", start.elapsed());
    assert!(ran >= lives.min(10), "only {ran} lives");
    // A model that meets only the easy cases proves little.
    for (what, states) in [
        ("instance", &["Ready", "ProvisionFailed", "Gone"][..]),
        ("binding", &["Ready", "Failed", "Gone"][..]),
    ] {
        for state in states {
            assert!(
                ran < 40 || seen.contains_key(&format!("{what} {state}")),
                "no {what} came to be {state}: {seen:#?}"
            );
        }
    }
    broker.end().await;
}

struct Life<'a> {
    broker: &'a TestBroker,
    name: String,
    instances: BTreeMap<&'static str, Instance>,
    told: Vec<String>,
    /// Faults are planned or a server is down: nothing is sure to end soon.
    troubled: bool,
}

impl Life<'_> {
    fn path(&self, id: &str) -> String {
        format!("/v2/service_instances/{}-{id}", self.name)
    }

    fn iid(&self, id: &str) -> String {
        names::iid("cf", &format!("{}-{id}", self.name))
    }

    fn of(&mut self, id: &str) -> &mut Instance {
        self.instances.get_mut(id).unwrap()
    }

    #[track_caller]
    fn check(&mut self, what: String, answer: &Answer, expected: Expected) {
        self.told
            .push(format!("{what} -> {} {}", answer.status, answer.error()));
        assert_eq!(
            (answer.status, answer.error()),
            expected,
            "{what}: {}\n{}\n{:#?}",
            answer.text,
            self.told.join("\n"),
            self.instances
        );
    }

    async fn step(&mut self, chance: &mut Chance) {
        let id = chance.pick(&INSTANCES);
        let binding = chance.pick(&BINDINGS);
        let flag = !chance.one_in(5);
        match chance.below(24) {
            0..=3 => self.put(id, chance, flag).await,
            4..=5 => self.patch(id, chance, flag).await,
            6 => self.delete(id, flag).await,
            7..=11 => {
                let plan = self.instances[id].attributes.plan;
                let asked = if chance.one_in(4) {
                    Asked::After(chance.pick(&BINDINGS))
                } else {
                    Asked::Role(plan, chance.pick(&["readwrite", "owner"]))
                };
                self.bind(id, binding, asked, flag).await;
            }
            12..=13 => self.unbind(id, binding, flag).await,
            14..=16 => self.work(false).await,
            17..=18 => self.work(true).await,
            19 => {
                self.broker.advance(Duration::from_secs(1 + chance.next() % 700));
                self.work(false).await;
            }
            20 => {
                self.told.push("sweep".into());
                // It may meet a planned fault: then it says so and comes again.
                let _ = self.broker.sweeper().once().await;
                self.learn().await;
            }
            21 => self.trouble(chance),
            22 => self.crash(chance).await,
            _ => {
                let iid = self.iid(id);
                if self.instances[id].state == State::Ready
                    && self.broker.world.instances.lock().unwrap().contains_key(&iid)
                {
                    self.told.push(format!("the server of {id} stops"));
                    self.broker.world.stop(&iid);
                    self.troubled = true;
                }
            }
        }
        if chance.one_in(3) {
            self.look().await;
        }
    }

    async fn put(&mut self, id: &'static str, chance: &mut Chance, flag: bool) {
        let asked = Attributes {
            plan: chance.pick(&[SMALL, SMALL, SMALL, MEDIUM]),
            size: (!chance.one_in(3)).then(|| 4 + chance.next() % 2),
        };
        let mut body =
            json!({"service_id": ALPHA, "plan_id": asked.plan, "organization_guid": "o", "space_guid": "s"});
        if let Some(size) = asked.size {
            body["parameters"] = json!({"size": size});
        }
        let expected = self.instances[id].put(&asked, flag);
        let answer = self
            .broker
            .put(&format!("{}?accepts_incomplete={flag}", self.path(id)), &body)
            .await;
        self.check(format!("PUT {id} {asked:?} {flag}"), &answer, expected);
        let instance = self.of(id);
        if expected == ACCEPTED && instance.state == State::Provisioning {
            assert_eq!(instance.open.as_deref(), Some(answer.operation()), "P-05");
        } else if expected == ACCEPTED {
            instance.state = State::Provisioning;
            instance.attributes = asked;
            instance.open = Some(answer.operation().to_owned());
        }
    }

    async fn patch(&mut self, id: &'static str, chance: &mut Chance, flag: bool) {
        let current = self.instances[id].attributes.clone();
        let to_medium = chance.one_in(4);
        let size = (!to_medium || chance.one_in(2)).then(|| 4 + chance.next() % 3);
        let target = Attributes {
            plan: if to_medium { MEDIUM } else { current.plan },
            size: size.or(current.size),
        };
        let mut body = json!({"service_id": ALPHA, "plan_id": target.plan});
        if let Some(size) = size {
            body["parameters"] = json!({"size": size});
        }
        let expected = self.instances[id].patch(&target, flag);
        let answer = self
            .broker
            .patch(&format!("{}?accepts_incomplete={flag}", self.path(id)), &body)
            .await;
        self.check(format!("PATCH {id} {target:?} {flag}"), &answer, expected);
        let instance = self.of(id);
        if expected == ACCEPTED && instance.state == State::Updating {
            assert_eq!(instance.open.as_deref(), Some(answer.operation()), "U-03");
        } else if expected == ACCEPTED {
            instance.state = State::Updating;
            instance.target = Some(target);
            instance.open = Some(answer.operation().to_owned());
        }
    }

    async fn delete(&mut self, id: &'static str, flag: bool) {
        let expected = self.instances[id].delete(flag);
        let path = format!(
            "{}?accepts_incomplete={flag}&service_id={ALPHA}&plan_id={SMALL}",
            self.path(id)
        );
        let answer = self.broker.delete(&path).await;
        self.check(format!("DELETE {id} {flag}"), &answer, expected);
        let instance = self.of(id);
        if expected == ACCEPTED && instance.state == State::Deprovisioning {
            assert_eq!(instance.open.as_deref(), Some(answer.operation()), "D-02");
        } else if expected == ACCEPTED {
            instance.state = State::Deprovisioning;
            instance.open = Some(answer.operation().to_owned());
        }
    }

    async fn bind(&mut self, id: &'static str, binding: &'static str, asked: Asked, flag: bool) {
        let flag = flag || self.troubled;
        let body = match &asked {
            Asked::Role(plan, role) => {
                json!({"service_id": ALPHA, "plan_id": plan, "parameters": {"role": role}})
            }
            Asked::After(before) => json!({"predecessor_binding_id": before}),
        };
        let expected = self.instances[id].bind(binding, &asked, flag);
        let path = format!(
            "{}/service_bindings/{binding}?accepts_incomplete={flag}",
            self.path(id)
        );
        let answer = self
            .beside_a_runner(self.broker.put(&path, &body), expected == (201, ""))
            .await;
        self.check(format!("PUT {id}/{binding} {asked:?} {flag}"), &answer, expected);
        if answer.status == 200 || answer.status == 201 {
            assert!(answer.body["credentials"]["password"].is_string(), "B-01, B-03");
        }
        let instance = self.of(id);
        let running = instance
            .alive(binding)
            .filter(|b| b.state == Bound::Creating)
            .and_then(|b| b.open.clone());
        match (expected, running) {
            (ACCEPTED, Some((token, _))) => assert_eq!(token, answer.operation(), "B-04"),
            (ACCEPTED, None) => {
                let open = Some((answer.operation().to_owned(), false));
                instance.bindings.insert(
                    binding,
                    Binding {
                        state: Bound::Creating,
                        asked,
                        open,
                    },
                );
            }
            ((201, _), _) => {
                instance.bindings.insert(
                    binding,
                    Binding {
                        state: Bound::Ready,
                        asked,
                        open: None,
                    },
                );
                self.learn().await;
            }
            _ => {}
        }
    }

    async fn unbind(&mut self, id: &'static str, binding: &'static str, flag: bool) {
        let flag = flag || self.troubled;
        let expected = self.instances[id].unbind(binding, flag);
        let path = format!(
            "{}/service_bindings/{binding}?accepts_incomplete={flag}&service_id={ALPHA}&plan_id={SMALL}",
            self.path(id)
        );
        let answer = self
            .beside_a_runner(self.broker.delete(&path), expected == (200, ""))
            .await;
        self.check(format!("DELETE {id}/{binding} {flag}"), &answer, expected);
        let Some(there) = self.of(id).bindings.get_mut(binding) else {
            return;
        };
        match (expected, &there.open) {
            (ACCEPTED, Some((token, false))) if there.state == Bound::Deleting => {
                assert_eq!(token, answer.operation(), "N-02")
            }
            (ACCEPTED, _) => {
                there.state = Bound::Deleting;
                there.open = Some((answer.operation().to_owned(), false));
            }
            ((200, _), _) => {
                (there.state, there.open) = (Bound::Gone, None);
                self.learn().await;
            }
            _ => {}
        }
    }

    /// A request that waits for its own operation needs somebody who works meanwhile.
    async fn beside_a_runner(&self, request: impl Future<Output = Answer>, waits: bool) -> Answer {
        if !waits {
            return request.await;
        }
        let answered = AtomicBool::new(false);
        let work = async {
            while !answered.load(Ordering::SeqCst) {
                self.broker.run_due().await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let request = async {
            let answer = request.await;
            answered.store(true, Ordering::SeqCst);
            answer
        };
        tokio::join!(request, work).0
    }

    /// What is due runs, or all there is to its end.
    async fn work(&mut self, whole: bool) {
        self.told.push(
            if whole {
                "run until idle"
            } else {
                "run what is due"
            }
            .into(),
        );
        if whole {
            self.broker.run_until_idle().await;
        } else {
            self.broker.run_due().await;
        }
        self.learn().await;
    }

    fn trouble(&mut self, chance: &mut Chance) {
        let call = chance.pick(&[
            "place", "apply", "observe", "remove", "prepare", "issue", "verify", "revoke",
        ]);
        let when = if chance.one_in(2) {
            When::Before
        } else {
            When::After
        };
        let kind = if chance.one_in(3) {
            PortErrorKind::Invalid
        } else {
            PortErrorKind::Transient
        };
        let times = u32::try_from(chance.below(3) + 1).unwrap();
        // `observe` and `list` have no moment after.
        let when = if call == "observe" { When::Before } else { when };
        self.told
            .push(format!("{times} × {call} fails {when:?} {kind:?}"));
        self.broker
            .world
            .plan(call, when, Effect::Fail(kind, "A planned fault."), times);
        self.troubled = true;
    }

    /// A worker dies in the middle of a call; its leases run out.
    async fn crash(&mut self, chance: &mut Chance) {
        let world = &self.broker.world;
        let call = chance.pick(&["apply", "remove", "issue", "verify", "revoke", "prepare"]);
        let when = if chance.one_in(2) {
            When::Before
        } else {
            When::After
        };
        self.told.push(format!("a worker dies {when:?} {call}"));
        world.calm();
        world.plan(call, when, Effect::Hang, 1);
        let runner = Runner::new(self.broker.engine.clone());
        tokio::select! {
            _ = runner.run_due() => {}
            () = world.hung.notified() => {}
        }
        world.calm();
        self.broker.engine.store().expire_leases().await.unwrap();
        self.learn().await;
    }

    /// Asks last_operation about everything that was going on.
    async fn learn(&mut self) {
        for id in INSTANCES {
            let open = self.instances[id].open.clone();
            if let Some(token) = open {
                let last = self
                    .broker
                    .get(&format!("{}/last_operation?operation={token}", self.path(id)))
                    .await
                    .expect(200);
                let instance = self.of(id);
                let ended = match (last.body["state"].as_str().unwrap(), instance.state) {
                    ("in progress", _) => continue,
                    ("succeeded", State::Provisioning) => State::Ready,
                    ("succeeded", State::Updating) => {
                        instance.attributes = instance.target.clone().unwrap();
                        State::Ready
                    }
                    ("succeeded", State::Deprovisioning) => {
                        instance.bindings.clear();
                        State::Gone
                    }
                    ("failed", State::Provisioning) => State::ProvisionFailed,
                    ("failed", State::Updating) => State::Ready,
                    ("failed", State::Deprovisioning) => State::DeprovisionFailed,
                    other => panic!("{id}: {other:?}\n{}", self.told.join("\n")),
                };
                self.told.push(format!("  {id} is {ended:?}: {}", last.body));
                let instance = self.of(id);
                instance.usable = last.body["instance_usable"]
                    .as_bool()
                    .unwrap_or(ended == State::Ready);
                (instance.state, instance.target, instance.open) = (ended, None, None);
            }
            for binding in BINDINGS {
                let Some((token, own)) = self.instances[id]
                    .bindings
                    .get(binding)
                    .and_then(|b| b.open.clone())
                else {
                    continue;
                };
                let path = format!(
                    "{}/service_bindings/{binding}/last_operation?operation={token}",
                    self.path(id)
                );
                let last = self.broker.get(&path).await.expect(200);
                let there = self.of(id).bindings.get_mut(binding).unwrap();
                there.state = match (last.body["state"].as_str().unwrap(), there.state) {
                    ("in progress", _) => continue,
                    (_, Bound::Failed) => Bound::Failed,
                    ("succeeded", Bound::Creating) => Bound::Ready,
                    ("succeeded", Bound::Deleting) => Bound::Gone,
                    ("failed", Bound::Creating) => Bound::Failed,
                    ("failed", Bound::Deleting) => Bound::DeleteFailed,
                    other => panic!("{id}/{binding} {own}: {other:?}\n{}", self.told.join("\n")),
                };
                there.open = None;
                let said = format!("  {id}/{binding} is {:?}: {}", there.state, last.body);
                self.told.push(said);
            }
        }
        self.own_work().await;
    }

    /// Revocations the broker began by itself are not told to anybody, so the store is asked.
    async fn own_work(&mut self) {
        for row in self
            .broker
            .engine
            .store()
            .operations_list(Some(OperationState::Open), 1000)
            .await
            .unwrap()
        {
            let operation = &row.operation;
            if operation.kind != OperationKind::Revoke {
                continue;
            }
            for id in INSTANCES {
                for binding in BINDINGS {
                    let bid = names::bid("cf", &format!("{}-{id}", self.name), binding);
                    if operation.bid.as_ref() != Some(&bid) {
                        continue;
                    }
                    let there = self.of(id).bindings.get_mut(binding).expect("a binding we know");
                    assert!(
                        matches!(there.state, Bound::Failed | Bound::DeleteFailed | Bound::Deleting),
                        "{there:?}"
                    );
                    if there.state == Bound::DeleteFailed {
                        there.state = Bound::Deleting;
                    }
                    there.open = Some((operation.id.clone(), true));
                }
            }
        }
    }

    /// What GET says of everything.
    async fn look(&mut self) {
        for id in INSTANCES {
            let expected = self.instances[id].fetch();
            let answer = self.broker.get(&self.path(id)).await;
            self.check(format!("GET {id}"), &answer, expected);
            if answer.status == 200 {
                let attributes = &self.instances[id].attributes;
                assert_eq!(answer.body["plan_id"], attributes.plan);
                assert_eq!(answer.body["parameters"]["size"].as_u64(), attributes.size);
            }
            let last = self
                .broker
                .get(&format!("{}/last_operation", self.path(id)))
                .await;
            let known = self.instances[id].state != State::Never;
            self.check(format!("LO {id}"), &last, if known { (200, "") } else { NONE });
            let progress = self.instances[id].open.is_some();
            assert_eq!(
                last.body["state"] == "in progress",
                progress,
                "{}\n{}",
                last.text,
                self.told.join("\n")
            );
            for binding in BINDINGS {
                let alive = self.instances[id].alive(binding).cloned();
                let expected = if alive.as_ref().is_some_and(|b| b.state == Bound::Ready) {
                    (200, "")
                } else {
                    NONE
                };
                let answer = self
                    .broker
                    .get(&format!("{}/service_bindings/{binding}", self.path(id)))
                    .await;
                self.check(format!("GET {id}/{binding}"), &answer, expected);
                if answer.status == 200 && !self.troubled {
                    let of = |name: &str| {
                        answer.body["credentials"][name]
                            .as_str()
                            .unwrap_or_default()
                            .to_owned()
                    };
                    let deleting = self.instances[id].state == State::Deprovisioning;
                    assert!(
                        deleting || self.broker.world.lets_in(&of("username"), &of("password")),
                        "{id}/{binding}\n{}",
                        self.told.join("\n")
                    );
                }
            }
        }
    }

    /// Peace returns, and everything is deleted. `seen` counts what this life met.
    async fn ends(mut self, seen: &mut BTreeMap<String, usize>) {
        self.told.push("the end".into());
        self.broker.world.calm();
        self.troubled = false;
        for _ in 0..3 {
            self.broker.sweeper().once().await.unwrap();
            self.work(true).await;
        }
        for id in INSTANCES {
            for binding in BINDINGS {
                self.unbind(id, binding, true).await;
                self.work(true).await;
            }
            self.delete(id, true).await;
            self.work(true).await;
            let state = self.instances[id].state;
            assert!(
                matches!(state, State::Gone | State::Never),
                "{id} is {state:?}\n{}",
                self.told.join("\n")
            );
        }
        self.look().await;
        for line in &self.told {
            *seen.entry(kind(line)).or_default() += 1;
        }
        let left = self.broker.left_over().await;
        assert!(left.is_empty(), "{left:?}\n{}", self.told.join("\n"));
    }
}

/// What a line of the story is about: the verb with its answer, or what something became.
fn kind(line: &str) -> String {
    if let Some((what, answer)) = line.split_once(" -> ") {
        let verb = what.split(' ').next().unwrap_or_default();
        let of = if what.split(' ').nth(1).is_some_and(|id| id.contains('/')) {
            "binding"
        } else {
            "instance"
        };
        return format!("{verb} {of} {answer}");
    }
    match line.trim_start().split_once(" is ") {
        Some((id, state)) => {
            let of = if id.contains('/') { "binding" } else { "instance" };
            format!("{of} {}", state.split(':').next().unwrap_or_default())
        }
        None => line.split(' ').next().unwrap_or_default().to_owned(),
    }
}
