//! What nobody asks for but must happen: expiry, left-overs, lost processes, old tombstones.
//!
//! Every round looks at rows and at the world and opens ordinary operations or repeats ordinary calls;
//! it keeps no state, so two replicas sweeping at once only do the same thing twice.

use super::instance_steps::{Here, destroy_secrets, reference, target};
use super::{Drift, Engine, millis, rotation_steps};
use crate::domain::audit::Cause;
use crate::domain::binding::{Binding, BindingState, UserState};
use crate::domain::delivery::Delivery;
use crate::domain::error::Error;
use crate::domain::instance::{Instance, InstanceState};
use crate::domain::names;
use crate::domain::operation::OperationKind;
use crate::ports::{InstanceRef, Observation, PortError, Removal, Volumes, secret_name};
use crate::store::Fail;
use crate::telemetry;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Rows looked at in one go.
const PAGE: i64 = 200;
/// Ended bindings whose servers are asked in one round, the latest first.
const MOST_ENDED: i64 = 500;
/// Tombstones, and operations, forgotten in one transaction.
const PURGED: i64 = 50;
/// How long a left-over rests before it is tried again.
const REST: Duration = Duration::from_mins(1);
/// How long after the end of a binding its user may be made again by a worker that was held up.
const HELD_UP: Duration = Duration::from_hours(1);

/// What one round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Revocations opened because a binding's time was over.
    pub expired: usize,
    /// Revocations opened for what failed binds and unbinds left.
    pub residual: usize,
    /// Revocations opened because a user was there again after its binding had ended.
    pub strays: usize,
    /// Operations opened on former users whose grace was over, and on rotations that nobody finished.
    pub retired: usize,
    /// Last looks at bindings, opened.
    pub settled: usize,
    /// Instances that had stopped and were started again.
    pub revived: usize,
    /// Left-overs of what had ended, removed.
    pub orphans: usize,
    /// Things outside that no row knows: told, not touched.
    pub unknown: usize,
    /// Deleted instances whose volumes were kept long enough.
    pub let_go: usize,
    /// Objects that were not as the broker made them.
    pub drifted: usize,
    /// Tombstones forgotten.
    pub purged: usize,
}

/// What the rows say of an iid.
enum Knowledge {
    Lives,
    Ended,
    Unknown,
}

/// The sweep of one process.
pub struct Sweeper {
    engine: Arc<Engine>,
}

impl Sweeper {
    /// A sweep over what `engine` knows.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    /// Sweeps until stopped: bindings every `often`, the world outside every `seldom`.
    pub async fn run(self, stop: CancellationToken, often: Duration, seldom: Duration) {
        let mut last_world: Option<tokio::time::Instant> = None;
        let mut last_drift = tokio::time::Instant::now();
        while !stop.is_cancelled() {
            report(self.bindings().await, "bindings");
            report(self.revive().await, "revive");
            if last_world.is_none_or(|at| at.elapsed() >= seldom) {
                report(self.strays().await, "strays");
                report(self.orphans().await, "orphans");
                report(self.retained().await, "retained");
                report(self.purge().await, "purge");
                last_world = Some(tokio::time::Instant::now());
            }
            let settings = &self.engine.settings;
            if settings.drift != Drift::Off && last_drift.elapsed() >= settings.drift_every {
                report(self.drift().await, "drift");
                last_drift = tokio::time::Instant::now();
            }
            tokio::select! {
                () = tokio::time::sleep(often) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Everything once.
    pub async fn once(&self) -> Result<SweepReport, Fail> {
        let bindings = self.bindings().await?;
        let revived = self.revive().await?.revived;
        let strays = self.strays().await?.strays;
        let world = self.orphans().await?;
        let let_go = self.retained().await?.let_go;
        let purged = self.purge().await?.purged;
        Ok(SweepReport {
            let_go,
            strays,
            revived,
            orphans: world.orphans,
            unknown: world.unknown,
            purged,
            ..bindings
        })
    }

    /// Expired bindings and left-overs become revocations; so do former users whose grace is over. What may have come
    /// back outside after its end is looked at once more.
    pub async fn bindings(&self) -> Result<SweepReport, Fail> {
        let engine = &self.engine;
        let now = engine.now();
        let mut report = SweepReport::default();
        for binding in engine.store.expired_bindings(now, PAGE).await? {
            report.expired += usize::from(engine.revoke_by_ourselves(&binding, Cause::Expiry).await?);
        }
        for binding in engine.store.residual_bindings(now - millis(REST), PAGE).await? {
            report.residual += usize::from(engine.revoke_by_ourselves(&binding, Cause::Residue).await?);
        }
        for binding in engine.store.bindings_with_users_due(now, PAGE).await? {
            report.retired += usize::from(engine.look_after_users(&binding).await?);
        }
        for binding in engine.store.bindings_to_look_at(now, PAGE).await? {
            report.settled += usize::from(self.look_again(&binding).await?);
        }
        Ok(report)
    }

    /// Looks once more at what lies around the server, after all that may come late has come.
    ///
    /// What a held-up worker put there after the end of a binding goes. What it put there after the undo of a rotation
    /// opens nothing, and only another rotation can follow it.
    async fn look_again(&self, binding: &Binding) -> Result<bool, Fail> {
        let engine = &self.engine;
        if binding.state.is_over() {
            return engine.open_by_ourselves(binding, OperationKind::Settle).await;
        }
        let (again, looked) = match rotation_steps::is_behind(engine, binding).await {
            Ok(false) => (None, false),
            Ok(true) if engine.open_by_ourselves(binding, OperationKind::Rotate).await? => (None, true),
            Ok(true) => return Ok(false),
            Err(error) => {
                warn!(bid = %binding.bid, detail = %error.detail, "could not look again at a binding");
                (Some(engine.now() + millis(REST)), false)
            }
        };
        let bid = binding.bid.clone();
        let written = engine.store.write(move |tx| {
            let bid = bid.clone();
            Box::pin(async move { tx.set_look_again(&bid, again).await })
        });
        written.await?;
        Ok(looked)
    }

    /// Takes access away again from users that came back after their binding had ended.
    ///
    /// A worker that is held up between its last look and its act can make a user after another worker has revoked it;
    /// what it records does not count, but the user is there. Servers are asked only where a binding ended lately.
    pub async fn strays(&self) -> Result<SweepReport, Fail> {
        let engine = &self.engine;
        let mut report = SweepReport::default();
        let mut ended: BTreeMap<String, Vec<Binding>> = BTreeMap::new();
        for binding in engine
            .store
            .ended_bindings(engine.now() - millis(HELD_UP), MOST_ENDED)
            .await?
        {
            ended.entry(binding.iid.clone()).or_default().push(binding);
        }
        for (iid, bindings) in ended {
            let users = match self.users(&iid).await? {
                Ok(users) => users,
                Err(error) => {
                    warn!(%iid, detail = %error.detail, "could not list the users of an instance");
                    continue;
                }
            };
            let is_there = |binding: &&Binding| {
                users
                    .iter()
                    .any(|user| *user == binding.handle || names::bid_of_user(user) == Some(&binding.bid))
            };
            for binding in bindings.iter().filter(is_there) {
                warn!(%iid, bid = %binding.bid, "the user of a binding that has ended is there again; revoking it");
                report.strays += usize::from(engine.revoke_by_ourselves(binding, Cause::Residue).await?);
            }
        }
        Ok(report)
    }

    /// The binding users that an instance's server knows; none while the instance is not ready.
    async fn users(&self, iid: &str) -> Result<Result<Vec<String>, PortError>, Fail> {
        let Some(now) = self.engine.store.instance(iid).await? else {
            return Ok(Ok(Vec::new()));
        };
        if now.instance.state != InstanceState::Ready {
            return Ok(Ok(Vec::new()));
        }
        Ok(match target(&self.engine, &now.instance).await {
            Ok(Some((mechanism, target))) => mechanism.list(&target).await,
            Ok(None) => Ok(Vec::new()),
            Err(error) => Err(error),
        })
    }

    /// Brings instances back that stopped, where nobody else does.
    pub async fn revive(&self) -> Result<SweepReport, Fail> {
        let mut report = SweepReport::default();
        if !self.engine.ports.provisioner.supervises() {
            return Ok(report);
        }
        let mut after = String::new();
        loop {
            let page = self.more_ready(&mut after).await?;
            if page.is_empty() {
                return Ok(report);
            }
            for instance in &page {
                match self.revive_one(instance).await {
                    Ok(revived) => report.revived += usize::from(revived),
                    Err(error) => {
                        warn!(iid = %instance.iid, detail = %error.detail, "could not look after an instance");
                    }
                }
            }
        }
    }

    async fn revive_one(&self, instance: &Instance) -> Result<bool, PortError> {
        let engine = &self.engine;
        let Ok(here) = Here::of(engine, instance, &instance.attributes) else {
            return Ok(false);
        };
        let desired = here.desired(engine).await?;
        let provisioner = &engine.ports.provisioner;
        match provisioner.observe(&here.reference, &desired).await? {
            Observation::Absent(why) | Observation::Failed(why) => {
                if !self.untouched(instance).await {
                    return Ok(false);
                }
                warn!(iid = %instance.iid, why, "an instance had stopped; starting it again");
                provisioner.apply(&here.reference, &desired).await?;
                Ok(true)
            }
            Observation::Ready(_) | Observation::Progressing(_) => Ok(false),
        }
    }

    /// Removes what is still outside of instances and bindings that have ended, and tells of what no row knows.
    ///
    /// Only a tombstone proves that something was to go. Something no row knows is never removed by itself: it may be the
    /// data of instances whose database was lost or restored from before they were made ([`unknown`](Self::unknown)).
    pub async fn orphans(&self) -> Result<SweepReport, Fail> {
        let engine = &self.engine;
        let mut report = SweepReport::default();
        let outside = match engine.ports.provisioner.list().await {
            Ok(list) => list,
            Err(error) => {
                warn!(detail = %error.detail, "could not list what exists");
                return Ok(report);
            }
        };
        for iid in outside {
            match self.knowledge(&iid).await? {
                Knowledge::Lives => {}
                Knowledge::Ended => report.orphans += usize::from(self.remove(&iid).await),
                Knowledge::Unknown => {
                    report.unknown += 1;
                    warn!(%iid, "no row knows this instance; `chandler instances unknown` lists and removes such");
                }
            }
        }
        let names = match engine.ports.secrets.list("").await {
            Ok(names) => names,
            Err(error) => {
                warn!(detail = %error.detail, "could not list secrets");
                return Ok(report);
            }
        };
        for name in names {
            if self.is_orphan(&name).await? {
                match self.destroy(&name).await {
                    Ok(()) => report.orphans += 1,
                    Err(error) => {
                        warn!(name, detail = %error.detail, "could not destroy a secret whose owner has ended");
                    }
                }
            }
        }
        Ok(report)
    }

    /// Destroys a secret whose owner has ended; with an administrator's those it had later, which the list of all may leave out.
    async fn destroy(&self, name: &str) -> Result<(), PortError> {
        let secrets = &self.engine.ports.secrets;
        if let Some((iid, _)) = name.split_once('/').filter(|_| secret_name::is_admin(name)) {
            for name in secrets.list(&secret_name::all(iid)).await? {
                if secret_name::is_admin(&name) {
                    secrets.destroy(&name).await?;
                }
            }
        }
        secrets.destroy(name).await
    }

    /// The iids of what exists outside and no row knows.
    ///
    /// The world is listed before the rows are asked, and rows are written before anything is made outside: nothing that
    /// is just being made is among them.
    pub async fn unknown(&self) -> Result<Vec<String>, Error> {
        let outside = self.engine.ports.provisioner.list().await;
        let outside = outside.map_err(|e| Error::unavailable(e.message).with_internal(e.detail))?;
        let mut unknown = Vec::new();
        for iid in outside {
            if matches!(self.knowledge(&iid).await?, Knowledge::Unknown) {
                unknown.push(iid);
            }
        }
        Ok(unknown)
    }

    /// Removes one thing outside, as far as it goes now. True when it went, or is going.
    pub async fn remove(&self, iid: &str) -> bool {
        let reference = InstanceRef {
            iid: iid.to_owned(),
            ..InstanceRef::default()
        };
        match self
            .engine
            .ports
            .provisioner
            .remove(&reference, Volumes::Delete)
            .await
        {
            Ok(Removal::Gone) => {
                info!(%iid, "removed what should not be there");
                true
            }
            Ok(Removal::StillGoing(_)) => true,
            Err(error) => {
                warn!(%iid, detail = %error.detail, "could not remove what should not be there");
                false
            }
        }
    }

    /// Whether a secret's owner is gone: its instance, or the binding it was made for.
    async fn is_orphan(&self, name: &str) -> Result<bool, Fail> {
        let mut parts = name.split('/');
        let iid = parts.next().unwrap_or_default();
        if !names::is_name(iid) {
            return Ok(false);
        }
        match self.knowledge(iid).await? {
            Knowledge::Lives => {}
            Knowledge::Ended => return Ok(true),
            Knowledge::Unknown => return Ok(false),
        }
        let (kind, Some(bid), rest) = (parts.next(), parts.next(), parts.next()) else {
            return Ok(false);
        };
        let Some(now) = self.engine.store.binding(bid).await? else {
            return Ok(matches!(kind, Some("b" | "v" | "n")));
        };
        let binding = &now.binding;
        let idle = now.open.is_none() && !binding.residue;
        let over = binding.state.is_over() && idle;
        let ready = binding.state == BindingState::Ready && idle;
        Ok(match kind {
            // Handed over: whoever made it once more came too late.
            Some("b") => over || (ready && binding.delivery != Delivery::Inline),
            Some("n") if ready => !self.is_next(bid, rest).await?,
            Some("v" | "n") => over,
            _ => false,
        })
    }

    /// Whether somebody still has to finish the rotation to this generation.
    async fn is_next(&self, bid: &str, generation: Option<&str>) -> Result<bool, Fail> {
        let users = self.engine.store.other_users(bid).await?;
        let next = users.iter().find(|user| user.state == UserState::Next);
        Ok(next.is_some_and(|next| generation == Some(next.generation.to_string().as_str())))
    }

    async fn knowledge(&self, iid: &str) -> Result<Knowledge, Fail> {
        Ok(match self.engine.store.instance(iid).await? {
            None => Knowledge::Unknown,
            // Its volumes are to be there.
            Some(now) if now.instance.retained_until.is_some() => Knowledge::Lives,
            Some(now) if now.instance.state == InstanceState::Gone => Knowledge::Ended,
            Some(_) => Knowledge::Lives,
        })
    }

    /// Lets go of volumes that were kept long enough, and of the secrets that open them.
    ///
    /// The row goes on saying that they are kept until the last of them is gone, so a crash in between loses nothing.
    pub async fn retained(&self) -> Result<SweepReport, Fail> {
        let engine = &self.engine;
        let mut report = SweepReport::default();
        for instance in engine.store.retained_until(engine.now(), PAGE).await? {
            match self.let_go(&instance).await {
                Ok(true) => report.let_go += usize::from(engine.forget_kept(&instance.iid).await?),
                Ok(false) => {}
                Err(error) => {
                    warn!(iid = %instance.iid, detail = %error.detail, "could not remove volumes that were kept long enough");
                }
            }
        }
        Ok(report)
    }

    /// True when nothing is left of it.
    async fn let_go(&self, instance: &Instance) -> Result<bool, PortError> {
        let ports = &self.engine.ports;
        let reference = reference(instance, "", "");
        if ports.provisioner.remove(&reference, Volumes::Delete).await? != Removal::Gone {
            return Ok(false);
        }
        destroy_secrets(&self.engine, &instance.iid, &[]).await?;
        Ok(true)
    }

    /// Looks for objects that somebody else changed, and puts them back if that is wanted.
    pub async fn drift(&self) -> Result<SweepReport, Fail> {
        let mut report = SweepReport::default();
        let mut after = String::new();
        loop {
            let page = self.more_ready(&mut after).await?;
            if page.is_empty() {
                return Ok(report);
            }
            for instance in &page {
                match self.drift_of(instance).await {
                    Ok(objects) => report.drifted += objects,
                    Err(error) => {
                        warn!(iid = %instance.iid, detail = %error.detail, "could not look for changed objects");
                    }
                }
            }
        }
    }

    async fn drift_of(&self, instance: &Instance) -> Result<usize, PortError> {
        let engine = &self.engine;
        let Ok(here) = Here::of(engine, instance, &instance.attributes) else {
            return Ok(0);
        };
        let desired = here.desired(engine).await?;
        let provisioner = &engine.ports.provisioner;
        let found = provisioner.drift(&here.reference, &desired).await?;
        for what in &found {
            warn!(iid = %instance.iid, what, "an object is not as the broker made it");
        }
        if !found.is_empty() && engine.settings.drift == Drift::Repair && self.untouched(instance).await {
            provisioner.apply(&here.reference, &desired).await?;
            provisioner.open(&here.reference, &desired).await?;
        }
        Ok(found.len())
    }

    /// The next ready instances behind `after`, which moves on; none when all were given.
    async fn more_ready(&self, after: &mut String) -> Result<Vec<Instance>, Fail> {
        let ready = Some(InstanceState::Ready);
        let page = self.engine.store.instances_page(after, ready, PAGE).await?;
        if let Some(last) = page.last() {
            after.clone_from(&last.iid);
        }
        Ok(page)
    }

    /// Whether an instance is ready, no operation looks after it, and it is what the row said that was read: one may have
    /// begun since, or come and gone, and left it with other parameters or another administrator.
    async fn untouched(&self, seen: &Instance) -> bool {
        let now = self.engine.store.instance(&seen.iid).await;
        now.is_ok_and(|now| {
            now.is_some_and(|now| {
                let there = now.instance;
                let same = there.attributes == seen.attributes && there.facts == seen.facts;
                now.open.is_none() && there.state == InstanceState::Ready && same
            })
        })
    }

    /// Forgets tombstones, and operations that newer ones followed, whose retention is over.
    pub async fn purge(&self) -> Result<SweepReport, Fail> {
        let before = self.engine.now() - millis(self.engine.settings.retention);
        let mut report = SweepReport::default();
        loop {
            let gone = self.engine.store.purge_instances(before, PURGED).await?
                + self.engine.store.purge_operations(before, PURGED).await?;
            report.purged += gone;
            if gone == 0 {
                return Ok(report);
            }
        }
    }
}

fn report(result: Result<SweepReport, Fail>, what: &'static str) {
    match result {
        Ok(report) if report == SweepReport::default() => {}
        Ok(report) => {
            for (what, count) in [
                ("expired_binding", report.expired),
                ("residual_binding", report.residual),
                ("stray_user", report.strays),
                ("former_user", report.retired),
                ("settled_binding", report.settled),
                ("stopped_instance", report.revived),
                ("orphan", report.orphans),
                ("unknown", report.unknown),
                ("kept_volumes", report.let_go),
                ("drifted_object", report.drifted),
                ("tombstone", report.purged),
            ] {
                if count > 0 {
                    telemetry::swept(what, u64::try_from(count).unwrap_or(u64::MAX));
                }
            }
            info!(?report, what, "swept");
        }
        Err(fail) => warn!(error = %fail, what, "could not sweep; trying again"),
    }
}
