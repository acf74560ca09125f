//! The runner: claims operations and takes them step by step (design §6).
//!
//! What must stay true: a step looks, acts and returns; waiting is a row with a later due time, so no
//! task or connection is held while a database boots. Everything recorded is fenced by the attempt
//! number of the claim. A lost lease stops the step. Only here is decided whether to try again.

use super::{Engine, binding_steps, instance_steps, lock, millis};
use crate::domain::instance::Millis;
use crate::domain::operation::{OperationKind, OperationState};
use crate::ports::{PortError, PortErrorKind};
use crate::store::{Advance, Claimed, Finish, Lease, LookAgain, Progress, UserChange};
use crate::telemetry;
use futures::FutureExt;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, warn};

/// Longest a single step may take before it counts as a transient failure.
const STEP_LIMIT: Duration = Duration::from_secs(150);
/// Failures of a step in a row after which another process gets its turn first: one that is cut off from a server would
/// otherwise always be the first to try again, because it alone knows the moment.
const OWN_TRIES: i64 = 3;
/// Longest pause between two tries of a step.
const LONGEST_PAUSE_MS: f64 = 15_000.0;

/// How the description of an operation that an operator cancelled begins.
pub const CANCELLED: &str = "Cancelled by an operator";

/// Looks at once after whatever happens outside, instead of when the pause is over.
async fn listen(engine: Arc<Engine>) {
    loop {
        let iid = engine.ports.provisioner.changed().await;
        match engine.store.operation_hasten(&iid, engine.now()).await {
            Ok(true) => engine.wake.notify_one(),
            Ok(false) => {}
            Err(fail) => debug!(error = %fail, "a change outside is looked at when its pause is over"),
        }
    }
}

/// What a step found.
#[derive(Debug)]
pub(super) enum Step {
    /// Done; go on with the next.
    Done(Progress),
    /// Done; go on with this one.
    Jump(&'static str, Progress),
    /// Not yet: come back, with the text for people.
    Again(Duration, String),
    /// Cannot work; the reason is for people.
    Failed(String),
}

/// What comes after a recorded step.
pub(super) enum Next {
    /// This step, at once.
    Step(&'static str),
    /// Nothing: the operation ends like this.
    End(Box<Finish>),
}

/// How a failing operation goes on.
pub(super) enum OnFailure {
    /// It ends like this.
    End(Box<Finish>),
    /// It is undone first, beginning with this step, until this deadline.
    Undo(&'static str, Millis),
}

/// Runs operations of one process.
#[derive(Clone)]
pub struct Runner {
    engine: Arc<Engine>,
    /// Steps running per offering: bounds concurrency.
    busy: Arc<Mutex<HashMap<String, usize>>>,
    stop: CancellationToken,
}

impl Runner {
    /// A runner for `engine`.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self {
            engine,
            busy: Arc::default(),
            stop: CancellationToken::new(),
        }
    }

    /// Claims and runs until `stop` is cancelled, then lets running steps reach their next record for at most `drain`.
    pub async fn run(mut self, stop: CancellationToken, drain: Duration) {
        self.stop = stop.clone();
        let listening = tokio::spawn(listen(self.engine.clone()));
        let mut tasks = JoinSet::new();
        while !stop.is_cancelled() {
            while tasks.try_join_next().is_some() {}
            let free = self.engine.settings.workers.saturating_sub(tasks.len());
            let claimed = if free == 0 {
                Vec::new()
            } else {
                self.claim(free).await
            };
            if claimed.is_empty() {
                let jitter = 0.75 + 0.5 * self.chance();
                let pause = self.engine.settings.poll.mul_f64(jitter);
                tokio::select! {
                    () = self.engine.wake.notified() => {}
                    Some(_) = tasks.join_next(), if free == 0 => {}
                    () = tokio::time::sleep(pause) => {}
                    () = stop.cancelled() => {}
                }
                continue;
            }
            for claimed in claimed {
                let runner = self.clone();
                tasks.spawn(async move { runner.work(claimed).await });
            }
        }
        listening.abort();
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(drain, all).await.is_err() {
            warn!("some operations did not reach a record in time; another worker takes them up");
        }
        tasks.abort_all();
        if let Err(fail) = self.engine.store.release_all(&self.engine.settings.owner).await {
            warn!(error = %fail, "leases could not be given back; they run out by themselves");
        }
    }

    /// Runs everything that is due now, one after the other, and returns how many claims that took.
    ///
    /// For tests and one-shot commands: nothing waits, nothing polls.
    pub async fn run_due(&self) -> usize {
        let mut runs = 0;
        loop {
            let claimed = self.claim(1).await;
            if claimed.is_empty() {
                return runs;
            }
            for claimed in claimed {
                runs += 1;
                self.work(claimed).await;
            }
        }
    }

    /// Runs one operation now, for a request that waits for it.
    pub(super) async fn run_one(&self, id: &str) {
        let settings = &self.engine.settings;
        match self
            .engine
            .store
            .claim_one(&settings.owner, millis(settings.lease), id)
            .await
        {
            Ok(Some(claimed)) => self.work(claimed).await,
            Ok(None) => {}
            Err(fail) => warn!(operation = id, error = %fail, "could not claim"),
        }
    }

    async fn claim(&self, most: usize) -> Vec<Claimed> {
        let settings = &self.engine.settings;
        let full = self.full_offerings();
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        match self
            .engine
            .store
            .claim(
                &settings.owner,
                self.engine.now(),
                millis(settings.lease),
                most,
                millis(self.stepped_back()),
                &full,
            )
            .await
        {
            Ok(claimed) => claimed,
            Err(fail) => {
                warn!(error = %fail, "the queue cannot be read; trying again");
                Vec::new()
            }
        }
    }

    fn full_offerings(&self) -> Vec<String> {
        let served = self.engine.served();
        lock(&self.busy)
            .iter()
            .filter(|(name, running)| {
                let most = served
                    .catalog
                    .offerings
                    .iter()
                    .find(|o| o.name == **name)
                    .map_or(1, |o| o.concurrency.max(1));
                **running >= most
            })
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Takes a claimed operation as far as it goes now; every log line of it can be found by its ids.
    async fn work(&self, claimed: Claimed) {
        let span = telemetry::operation_span(&claimed.operation);
        self.work_through(claimed).instrument(span).await;
    }

    async fn work_through(&self, mut claimed: Claimed) {
        let offering = claimed.operation.offering.clone();
        if claimed.operation.attempt == 1 {
            telemetry::operation_started(claimed.operation.kind, &offering);
        }
        *lock(&self.busy).entry(offering.clone()).or_default() += 1;
        let token = CancellationToken::new();
        lock(&self.engine.running).insert(claimed.operation.id.clone(), token.clone());
        while self.one_step(&mut claimed, &token).await {}
        lock(&self.engine.running).remove(&claimed.operation.id);
        if let Some(running) = lock(&self.busy).get_mut(&offering) {
            *running -= 1;
        }
        self.engine.wake.notify_one();
    }

    /// One step and its record. True = go on at once.
    async fn one_step(&self, claimed: &mut Claimed, token: &CancellationToken) -> bool {
        let engine = &self.engine;
        // A row of another version, or of another configuration, with a step this one does not know begins again.
        known_step(engine, claimed).clone_into(&mut claimed.operation.step);
        let operation = &claimed.operation;
        let now = engine.now();
        let (id, kind, step) = (operation.id.clone(), operation.kind, operation.step.clone());
        if now >= operation.deadline_at {
            let why = if operation.description.starts_with(CANCELLED) {
                operation.description.clone()
            } else {
                format!("Not done in time. Last seen: {}", operation.description)
            };
            return self.failed(claimed, &why, true).await;
        }
        debug!(%step, attempt = operation.attempt, "step");
        let result = tokio::select! {
            result = guarded_step(engine, claimed) => result,
            () = self.keep_lease(&id, operation.attempt) => {
                warn!(%step, "lease lost; another worker goes on");
                return false;
            }
            () = token.cancelled() => {
                debug!(%step, "superseded");
                return false;
            }
        };
        match result {
            Ok(Step::Done(progress)) => self.done(claimed, progress).await,
            Ok(Step::Jump(step, progress)) => {
                merge(claimed, &progress);
                self.go_on(claimed, step, progress).await
            }
            Ok(Step::Again(after, message)) => self.again(claimed, after, message, 0, Lease::Free).await,
            Ok(Step::Failed(why)) => self.failed(claimed, &why, false).await,
            Err(error) => match error.kind {
                PortErrorKind::Transient | PortErrorKind::Conflict => {
                    let failures = claimed.operation.failures;
                    info!(%step, failures, detail = %error.detail, "will try again");
                    telemetry::step_retried(kind, &claimed.operation.offering);
                    let lease = if failures < OWN_TRIES {
                        Lease::Free
                    } else {
                        Lease::StepBack
                    };
                    self.again(claimed, self.pause(failures), error.message, failures + 1, lease)
                        .await
                }
                PortErrorKind::Denied | PortErrorKind::Invalid | PortErrorKind::Gone => {
                    warn!(%step, detail = %error.detail, "cannot work");
                    self.failed(claimed, &error.message, false).await
                }
            },
        }
    }

    async fn done(&self, claimed: &mut Claimed, progress: Progress) -> bool {
        merge(claimed, &progress);
        match next(&self.engine, claimed) {
            Next::End(mut finish) => {
                finish.progress = progress;
                self.finish(claimed, *finish).await
            }
            Next::Step(step) => self.go_on(claimed, step, progress).await,
        }
    }

    /// Records a step that is done and what comes next. True = at once.
    async fn go_on(&self, claimed: &mut Claimed, step: &'static str, progress: Progress) -> bool {
        let event = (claimed.operation.step.clone(), "done", String::new());
        let advance = Advance {
            step,
            due_at: self.engine.now(),
            tries: 0,
            failures: 0,
            description: doing(claimed.operation.kind, step, claimed.operation.failing.as_deref()),
            failing: claimed.operation.failing.clone(),
            deadline_at: claimed.operation.deadline_at,
            progress,
            event: Some(event),
            lease: self.lease(),
        };
        self.record(claimed, advance).await && !self.stop.is_cancelled()
    }

    /// Comes back to the step after a pause: to wait on, or (`failures` > 0) to try again what failed so often by now.
    async fn again(
        &self,
        claimed: &mut Claimed,
        after: Duration,
        message: String,
        failures: i64,
        lease: Lease,
    ) -> bool {
        let word = if failures == 0 { "waiting" } else { "retry" };
        let operation = &claimed.operation;
        let due_at = self.engine.now() + millis(after).max(1);
        let said = operation.description == message;
        let advance = Advance {
            step: known_step(&self.engine, claimed),
            due_at: due_at.min(operation.deadline_at),
            tries: operation.tries + 1,
            failures,
            event: (!said).then(|| (operation.step.clone(), word, message.clone())),
            description: message,
            failing: operation.failing.clone(),
            deadline_at: operation.deadline_at,
            progress: Progress::default(),
            lease,
        };
        if self.record(claimed, advance).await {
            // In this process the pause is kept to the millisecond; elsewhere, or after a restart, a poll finds it.
            let engine = self.engine.clone();
            let after = match lease {
                Lease::StepBack => after + self.stepped_back(),
                Lease::Keep | Lease::Free => after,
            };
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                engine.wake.notify_one();
            });
        }
        false
    }

    async fn failed(&self, claimed: &mut Claimed, why: &str, late: bool) -> bool {
        let engine = &self.engine;
        let operation = &claimed.operation;
        let on_failure = if operation.kind.is_binding() {
            binding_steps::on_failure(engine, claimed, why)
        } else {
            instance_steps::on_failure(engine, claimed, why, late)
        };
        match on_failure {
            OnFailure::End(finish) => self.finish(claimed, *finish).await,
            OnFailure::Undo(step, deadline_at) => {
                let advance = Advance {
                    step,
                    due_at: engine.now(),
                    tries: 0,
                    failures: 0,
                    description: doing(operation.kind, step, Some(why)),
                    failing: Some(why.to_owned()),
                    deadline_at,
                    progress: Progress {
                        revoked: operation.kind == OperationKind::Bind,
                        ..Progress::default()
                    },
                    event: Some((operation.step.clone(), "failed", why.to_owned())),
                    lease: self.lease(),
                };
                self.record(claimed, advance).await && !self.stop.is_cancelled()
            }
        }
    }

    /// Writes a step down and brings the claimed copy up to it. False = it is not ours any more, or could not be written.
    async fn record(&self, claimed: &mut Claimed, advance: Advance) -> bool {
        let (step, tries, failures) = (advance.step, advance.tries, advance.failures);
        let (description, failing, deadline_at) = (
            advance.description.clone(),
            advance.failing.clone(),
            advance.deadline_at,
        );
        match self
            .engine
            .store
            .advance(claimed, advance, self.engine.now())
            .await
        {
            Ok(true) => {
                let operation = &mut claimed.operation;
                step.clone_into(&mut operation.step);
                (
                    operation.tries,
                    operation.failures,
                    operation.description,
                    operation.failing,
                    operation.deadline_at,
                ) = (tries, failures, description, failing, deadline_at);
                true
            }
            Ok(false) => {
                debug!("not ours any more; nothing recorded");
                false
            }
            Err(fail) => {
                // The lease runs out and the step is repeated: steps converge.
                warn!(error = %fail, "could not record; the step will be repeated");
                false
            }
        }
    }

    async fn finish(&self, claimed: &Claimed, finish: Finish) -> bool {
        let operation = &claimed.operation;
        let now = self.engine.now();
        let state = finish.state;
        let outcome = state.as_str();
        let description = finish.description.clone();
        match self.engine.store.finish(claimed, finish, now).await {
            Ok(true) => {
                let took = now - operation.created_at;
                info!(
                    outcome,
                    ms = took,
                    reason = if outcome == "failed" {
                        description.as_str()
                    } else {
                        ""
                    },
                    "operation ended"
                );
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "a duration in seconds needs no 53 bits"
                )]
                telemetry::operation_finished(
                    operation.kind,
                    &operation.offering,
                    state,
                    took as f64 / 1000.0,
                );
                self.engine.ended(&operation.id);
            }
            Ok(false) => debug!("not ours any more; end not recorded"),
            Err(fail) => warn!(error = %fail, "could not record the end; the step will be repeated"),
        }
        false
    }

    /// Returns when the lease is lost.
    async fn keep_lease(&self, id: &str, attempt: i64) {
        let lease = self.engine.settings.lease;
        let mut last_good = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(lease / 3).await;
            match self.engine.store.heartbeat(id, attempt, millis(lease)).await {
                Ok(true) => last_good = tokio::time::Instant::now(),
                Ok(false) => return,
                // A database that cannot be reached for a whole lease has given it to somebody else.
                Err(_) if last_good.elapsed() >= lease => return,
                Err(_) => {}
            }
        }
    }

    /// Whether the next step is this worker's.
    fn lease(&self) -> Lease {
        if self.stop.is_cancelled() {
            Lease::Free
        } else {
            Lease::Keep
        }
    }

    /// How much later than others this process takes up again what it could not do: long enough for their poll.
    fn stepped_back(&self) -> Duration {
        2 * self.engine.settings.poll
    }

    /// Doubling pause with jitter, so that many that failed together do not come back together.
    fn pause(&self, failures: i64) -> Duration {
        let failures = i32::try_from(failures.clamp(0, 30)).unwrap_or(30);
        let base = (60.0 * 1.8_f64.powi(failures)).min(LONGEST_PAUSE_MS);
        Duration::from_secs_f64(base * (0.5 + self.chance()) / 1000.0)
    }

    /// A number in 0..1 from the same source as operation tokens.
    fn chance(&self) -> f64 {
        let token = (self.engine.ports.new_id)();
        let sum = token
            .bytes()
            .fold(7_u32, |sum, b| sum.wrapping_mul(31).wrapping_add(u32::from(b)));
        f64::from(sum % 1000) / 1000.0
    }
}

/// A step with its time limit; a panic in it is a failure that may pass, never the end of the runner.
async fn guarded_step(engine: &Engine, claimed: &Claimed) -> Result<Step, PortError> {
    let step = AssertUnwindSafe(step(engine, claimed)).catch_unwind();
    match tokio::time::timeout(STEP_LIMIT, step).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(
            PortError::transient("The broker met an internal error; it tries again.")
                .with_detail("a step panicked"),
        ),
        Err(_) => Err(
            PortError::transient("The backend does not answer; the broker tries again.")
                .with_detail("step time limit"),
        ),
    }
}

async fn step(engine: &Engine, claimed: &Claimed) -> Result<Step, PortError> {
    if claimed.operation.kind.is_binding() {
        binding_steps::step(engine, claimed).await
    } else {
        instance_steps::step(engine, claimed).await
    }
}

fn next(engine: &Engine, claimed: &Claimed) -> Next {
    if claimed.operation.kind.is_binding() {
        binding_steps::next(engine, claimed)
    } else {
        instance_steps::next(engine, claimed)
    }
}

/// The steps of an operation, in order. Undoing a bind is an unbind; undoing an update is the same steps with the old values.
fn steps(engine: &Engine, claimed: &Claimed) -> Vec<&'static str> {
    if claimed.operation.kind.is_binding() {
        binding_steps::steps(engine, claimed)
    } else {
        instance_steps::steps(engine, claimed.operation.kind)
    }
}

/// The step after the present one, or none after the last.
pub(super) fn following(engine: &Engine, claimed: &Claimed) -> Option<&'static str> {
    let steps = steps(engine, claimed);
    let at = steps.iter().position(|s| *s == claimed.operation.step)?;
    steps.get(at + 1).copied()
}

/// The present step, or the first one when it is none of this operation's: steps converge.
fn known_step(engine: &Engine, claimed: &Claimed) -> &'static str {
    let steps = steps(engine, claimed);
    let known = steps.iter().find(|s| **s == claimed.operation.step);
    known.or(steps.first()).copied().unwrap_or_default()
}

fn merge(claimed: &mut Claimed, progress: &Progress) {
    if let Some(facts) = &progress.facts {
        claimed.instance.facts.clone_from(facts);
    }
    if let Some(endpoints) = &progress.endpoints {
        claimed.instance.endpoints.clone_from(endpoints);
    }
    if let (Some(handle), Some(binding)) = (&progress.handle, &mut claimed.binding) {
        binding.handle.clone_from(handle);
    }
    if let (
        Some(UserChange::Adopted {
            handle, generation, ..
        }),
        Some(binding),
    ) = (&progress.user, &mut claimed.binding)
    {
        binding.handle.clone_from(handle);
        binding.generation = *generation;
    }
}

/// Progress text of a step.
fn doing(kind: OperationKind, step: &str, failing: Option<&str>) -> String {
    let text = match step {
        "place" => "Choosing a place.",
        "secrets" => "Making the administrator's credentials.",
        "apply" => "Starting.",
        "ready" => "Waiting for it to become ready.",
        "prepare" => "Preparing it for bindings.",
        "remove" => "Removing.",
        "forget" => "Forgetting its secrets.",
        "material" => "Making credentials.",
        "issue" => "Giving the credentials access.",
        "verify" => "Logging in with the new credentials.",
        "publish" => "Putting the credentials into the vault.",
        "identity" => "Giving the application an identity.",
        "project" => "Writing the Secret.",
        "handover" => "Letting go of the credentials.",
        "adopt" => "Taking the new credentials into use.",
        "close" => "Shutting the application out.",
        "revoke" => "Revoking.",
        "withdraw" => "Taking the credentials out of the vault.",
        "unproject" => "Removing the Secret.",
        "dismiss" => "Removing the application's identity.",
        "clear" | "retire" => "Revoking the former credentials.",
        "ask" => "Asking whether applications have the new credentials.",
        "retract" => "Revoking the new credentials.",
        "discard" => "Forgetting the new credentials.",
        "release" => "Shutting applications out.",
        "renew" => "Making new credentials of the administrator.",
        "change" => "Giving the administrator the new credentials.",
        "confirm" => "Looking that the former credentials are refused.",
        "drop" => "Destroying the former credentials.",
        _ => "Working.",
    };
    match (failing, kind) {
        (Some(why), OperationKind::Update) => format!("{why} Going back to the previous state: {text}"),
        (Some(why), _) => format!("{why} Undoing: {text}"),
        (None, _) => text.to_owned(),
    }
}

/// How an operation that went well ends.
pub(super) fn succeeded(claimed: &Claimed, description: &str) -> Finish {
    Finish {
        state: OperationState::Succeeded,
        description: description.to_owned(),
        instance_usable: None,
        update_repeatable: None,
        instance: None,
        binding: None,
        bindings_gone: false,
        look_again: LookAgain::default(),
        progress: Progress::default(),
        step: claimed.operation.step.clone(),
    }
}

/// How an operation that did not go well ends.
pub(super) fn ended_badly(claimed: &Claimed, why: &str) -> Finish {
    Finish {
        state: OperationState::Failed,
        ..succeeded(claimed, why)
    }
}
