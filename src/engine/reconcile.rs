//! Compares what the rows say of bindings with what is there: clients at the identity provider, secrets in the vault,
//! users on the instances' servers, Secrets in applications' namespaces (of these each by its name: nobody may list them).
//! On a timer it only tells; an operator may have it put right what it finds.
//!
//! What must stay true: it holds a page at a time (of users: the names on eight servers) and asks the rows about a page at
//! once, so its memory does not grow with the number of bindings. The world is read before the rows, and rows are written before anything is made outside, so
//! nothing that is just being made is taken for a left-over; what changed since it began is left to the next time.
//! What is put back is put back in the order in which a bind lets in: the user, the secret, the client last.
//! By itself it takes nothing away: what a row proves ended is revoked when an operator asks for repair, what no row
//! knows only when he asks for removal (ADR 0013).

mod finding;
mod mend;
mod seen;
#[cfg(test)]
mod tests;

pub use finding::{Done, Finding, Kind, Report};

use super::instance_steps::target;
use super::{Engine, outside};
use crate::domain::delivery::{BindingRef, Delivery};
use crate::domain::instance::{Instance, InstanceState, Millis};
use crate::domain::names;
use crate::ports::{CredentialMechanism, PortError, PortErrorKind, PortResult, Target};
use crate::store::{Fail, KnownBinding};
use crate::telemetry;
use finding::{Standing, of_client, of_copy, of_secret, of_user, standing};
use futures::StreamExt;
use seen::Seen;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Rows read at once, and names asked about in one statement.
const PAGE: usize = 200;
/// Servers asked for their users side by side.
const SIDE_BY_SIDE: usize = 8;
/// Findings of one kind that the timer writes into the log each time.
const LOGGED: u64 = 20;

/// What is said of Secrets in applications' namespaces.
const COPIES: [Kind; 3] = [Kind::CopyMissing, Kind::CopyEdited, Kind::CopyStrange];

/// What may be changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mend {
    /// Put right what is wrong or missing, and revoke what a row proves ended.
    pub repair: bool,
    /// Take away what no row knows.
    pub remove: bool,
}

/// The comparison of one process.
pub struct Reconciler {
    engine: Arc<Engine>,
}

impl Reconciler {
    /// A comparison of what `engine` knows with what is there.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    /// Compares every so often until stopped, and tells log and metrics; changes nothing.
    pub async fn run(self, stop: CancellationToken, every: Duration) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = stop.cancelled() => return,
            }
            let mut told = BTreeMap::<Kind, u64>::new();
            let mut tell = |finding: &Finding| {
                let before = told.entry(finding.kind).or_default();
                *before += 1;
                if *before <= LOGGED {
                    warn!(kind = %finding.kind, what = finding.what, "what is there and the rows do not agree: {}", finding.done);
                }
            };
            let compared = tokio::select! {
                compared = self.once(Mend::default(), &mut tell) => compared,
                () = stop.cancelled() => return,
            };
            match compared {
                Ok(report) => {
                    for (kind, count) in &report.found {
                        telemetry::reconciled(kind.as_str(), *count);
                    }
                    info!(?report, "compared bindings with what is there");
                }
                Err(fail) => warn!(error = %fail, "could not compare bindings with what is there"),
            }
        }
    }

    /// Compares once; every finding is told as soon as it is dealt with.
    ///
    /// Errors: the database cannot be used. What else cannot be looked at is a finding of its own.
    pub async fn once(
        &self,
        mend: Mend,
        tell: &mut (dyn FnMut(&Finding) + Send + Sync),
    ) -> Result<Report, Fail> {
        let mut walk = Walk {
            engine: &self.engine,
            mend,
            began: self.engine.now(),
            report: Report::default(),
            tell,
        };
        walk.looked_at(&[Kind::Unread]);
        walk.users().await?;
        if let Some(seen) = walk.secrets().await? {
            walk.missing(Source::Vault, &seen).await?;
        }
        if let Some(seen) = walk.clients().await? {
            walk.missing(Source::Identity, &seen).await?;
        }
        walk.copies().await?;
        Ok(walk.report)
    }
}

/// One comparison under way.
struct Walk<'a> {
    engine: &'a Arc<Engine>,
    mend: Mend,
    began: Millis,
    report: Report,
    tell: &'a mut (dyn FnMut(&Finding) + Send + Sync),
}

/// Where bindings are known, beside their servers.
#[derive(Debug, Clone, Copy)]
enum Source {
    Vault,
    Identity,
}

/// The users of one server.
struct Listed {
    mechanism: Arc<dyn CredentialMechanism>,
    target: Target,
    users: BTreeSet<String>,
}

/// Rows by bid.
type Rows = BTreeMap<String, KnownBinding>;

impl Walk<'_> {
    fn looked_at(&mut self, kinds: &[Kind]) {
        for kind in kinds {
            self.report.found.entry(*kind).or_default();
        }
    }

    fn found(&mut self, kind: Kind, what: impl Into<String>, done: Done) {
        *self.report.found.entry(kind).or_default() += 1;
        self.report.left += u64::from(!done.is_mended());
        let what = what.into();
        (self.tell)(&Finding { kind, what, done });
    }

    fn unread(&mut self, what: &str, error: &PortError) {
        warn!(what, detail = %error.detail, "could not be compared");
        self.found(Kind::Unread, what, Done::Failed(error.message.clone()));
    }

    fn page(&mut self, held: usize) {
        self.report.pages += 1;
        self.report.most_held = self.report.most_held.max(held);
    }

    /// The rows of some bindings, in one question.
    async fn rows(&mut self, bids: Vec<String>) -> Result<Rows, Fail> {
        self.report.lookups += 1;
        let known = self.engine.store.bindings_among(&bids).await?;
        Ok(known
            .into_iter()
            .map(|known| (known.binding.bid.clone(), known))
            .collect())
    }

    /// Every client there is, against its row. The names that were seen, unless not all could be.
    async fn clients(&mut self) -> Result<Option<Seen>, Fail> {
        let Some(identity) = self.engine.ports.identity.clone() else {
            return Ok(None);
        };
        let mut seen = Seen::new(self.began);
        let mut after: Option<String> = None;
        loop {
            let page = match identity.page(after.as_deref()).await {
                Ok(page) => page,
                Err(error) => {
                    self.unread("the identity provider", &error);
                    return Ok(None);
                }
            };
            self.page(page.items.len());
            for some in page.items.chunks(PAGE) {
                let rows = self
                    .rows(some.iter().filter_map(|c| c.bid.clone()).collect())
                    .await?;
                for client in some {
                    self.report.looked_at[0] += 1;
                    let known = client.bid.as_ref().and_then(|bid| rows.get(bid));
                    if let Some(bid) = &client.bid {
                        seen.add(bid);
                    }
                    if let Some(kind) = of_client(client, standing(known, self.began)) {
                        let done = self.mend_client(kind, client, known).await?;
                        self.found(kind, &client.client_id, done);
                    }
                }
            }
            after = page.next;
            if after.is_none() {
                self.looked_at(&[
                    Kind::ClientStrange,
                    Kind::ClientUnknown,
                    Kind::ClientEnabled,
                    Kind::ClientEnded,
                    Kind::ClientDisabled,
                    Kind::ClientMissing,
                ]);
                return Ok(Some(seen));
            }
        }
    }

    /// Every secret there is, against its row. The bindings whose secrets were seen in place, unless not all could be.
    async fn secrets(&mut self) -> Result<Option<Seen>, Fail> {
        let Some(vault) = self.engine.ports.vault.clone() else {
            return Ok(None);
        };
        let mut seen = Seen::new(self.began);
        let mut after: Option<String> = None;
        loop {
            let page = match vault.page(after.as_deref()).await {
                Ok(page) => page,
                Err(error) => {
                    self.unread("the vault", &error);
                    return Ok(None);
                }
            };
            self.page(page.items.len());
            for some in page.items.chunks(PAGE) {
                let rows = self.rows(some.iter().map(|s| s.bid.clone()).collect()).await?;
                for secret in some {
                    self.report.looked_at[1] += 1;
                    let known = rows.get(&secret.bid);
                    let in_place = known.is_some_and(|known| known.binding.reference() == *secret);
                    if in_place {
                        seen.add(&secret.bid);
                    }
                    if let Some(kind) = of_secret(in_place, standing(known, self.began)) {
                        let done = self.mend_secret(kind, secret, known).await?;
                        self.found(kind, shown(secret), done);
                    }
                }
            }
            after = page.next;
            if after.is_none() {
                self.looked_at(&[
                    Kind::SecretUnknown,
                    Kind::SecretEnded,
                    Kind::SecretElsewhere,
                    Kind::SecretMissing,
                ]);
                return Ok(Some(seen));
            }
        }
    }

    /// Every valid binding, against what was seen.
    async fn missing(&mut self, source: Source, seen: &Seen) -> Result<(), Fail> {
        let mut after = String::new();
        loop {
            let page = self.valid_page(&mut after, None).await?;
            if page.is_empty() {
                return Ok(());
            }
            for known in page {
                let binding = &known.binding;
                let (in_vault, has_client) = outside::has(self.engine, binding.delivery);
                let there = seen.holds(&binding.bid);
                if there || standing(Some(&known), self.began) != Standing::Valid {
                    continue;
                }
                match source {
                    Source::Vault if in_vault => self.secret_missing(binding).await?,
                    Source::Identity if has_client => self.client_missing(binding).await?,
                    _ => {}
                }
            }
        }
    }

    /// The Secret of every valid binding that has one in its application's namespace.
    async fn copies(&mut self) -> Result<(), Fail> {
        let Some(projection) = self.engine.ports.projection.clone() else {
            self.looked_at(&COPIES);
            return Ok(());
        };
        let mut after = String::new();
        loop {
            let page = self.valid_page(&mut after, None).await?;
            if page.is_empty() {
                self.looked_at(&COPIES);
                return Ok(());
            }
            let began = self.began;
            let states = page
                .into_iter()
                .filter(|known| known.binding.delivery == Delivery::Secret)
                .filter(|known| standing(Some(known), began) == Standing::Valid)
                .map(|KnownBinding { binding, .. }| {
                    let projection = Arc::clone(&projection);
                    async move {
                        let place = outside::place(&binding);
                        let state = projection.state(&binding.reference(), &place).await;
                        (binding, place, state)
                    }
                });
            let mut states = futures::stream::iter(states).buffered(SIDE_BY_SIDE);
            while let Some((binding, place, state)) = states.next().await {
                self.report.looked_at[3] += 1;
                let what = format!("{}/{}", place.namespace, place.name);
                let kind = match state {
                    Ok(state) => of_copy(state),
                    Err(error) => {
                        self.unread(&format!("the Secret {what}"), &error);
                        // Nor would it answer about the next ones.
                        if error.kind == PortErrorKind::Transient {
                            return Ok(());
                        }
                        None
                    }
                };
                if let Some(kind) = kind
                    && self.is_still(&binding.bid, Standing::Valid).await?
                {
                    self.found(kind, what, Done::Told(kind.advice()));
                }
            }
        }
    }

    /// The next valid bindings behind `after`, which moves on; none when all were given.
    async fn valid_page(&mut self, after: &mut String, iid: Option<&str>) -> Result<Vec<KnownBinding>, Fail> {
        let most = i64::try_from(PAGE).unwrap_or(i64::MAX);
        let page = self.engine.store.valid_bindings(after, iid, most).await?;
        if let Some(last) = page.last() {
            after.clone_from(&last.binding.bid);
            self.page(page.len());
        }
        Ok(page)
    }

    /// Every user on every server that can be asked.
    async fn users(&mut self) -> Result<(), Fail> {
        self.looked_at(&[Kind::UserUnknown, Kind::UserEnded, Kind::UserMissing]);
        let engine = self.engine;
        let mut after = String::new();
        loop {
            let most = i64::try_from(PAGE).unwrap_or(i64::MAX);
            let ready = Some(InstanceState::Ready);
            let page = engine.store.instances_page(&after, ready, most).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after.clone_from(&last.iid);
            self.page(page.len());
            let listing = page
                .into_iter()
                .map(|instance| async move { (users_of(engine, &instance).await, instance.iid) });
            let mut lists = futures::stream::iter(listing).buffered(SIDE_BY_SIDE);
            while let Some((listed, iid)) = lists.next().await {
                match listed {
                    Ok(Some(listed)) => self.users_on(&iid, &listed).await?,
                    Ok(None) => {}
                    Err(error) => self.unread(&format!("the users of instance {iid}"), &error),
                }
            }
        }
    }

    /// Users beside the present ones, and whether they are let in.
    async fn other_users(&mut self, rows: &Rows) -> Result<BTreeMap<String, bool>, Fail> {
        let rotated = |known: &&KnownBinding| known.binding.rotations > 0;
        let bids: Vec<String> = rows
            .values()
            .filter(rotated)
            .map(|known| known.binding.bid.clone())
            .collect();
        if bids.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.report.lookups += 1;
        let others = self.engine.store.other_users_among(&bids).await?;
        Ok(others
            .into_iter()
            .map(|(_, handle, welcome)| (handle, welcome))
            .collect())
    }

    async fn users_on(&mut self, iid: &str, listed: &Listed) -> Result<(), Fail> {
        let users: Vec<&String> = listed.users.iter().collect();
        for some in users.chunks(PAGE) {
            let bid = |user: &&String| names::bid_of_user(user).map(str::to_owned);
            let rows = self.rows(some.iter().filter_map(bid).collect()).await?;
            let others = self.other_users(&rows).await?;
            for user in some {
                self.report.looked_at[2] += 1;
                let known = names::bid_of_user(user).and_then(|bid| rows.get(bid));
                let welcome = match known {
                    Some(known) if known.binding.handle == **user => Some(true),
                    _ => others.get(*user).copied(),
                };
                let standing = standing(known, self.began);
                if let Some(kind) = of_user(user, iid, known, welcome, standing) {
                    let done = self.mend_user(kind, user, listed, known).await?;
                    self.found(kind, format!("{user} on {iid}"), done);
                }
            }
        }
        let mut after = String::new();
        loop {
            let page = self.valid_page(&mut after, Some(iid)).await?;
            if page.is_empty() {
                return Ok(());
            }
            let absent = |known: &&KnownBinding| {
                standing(Some(known), self.began) == Standing::Valid
                    && !known.binding.handle.is_empty()
                    && !listed.users.contains(&known.binding.handle)
            };
            let suspects: Vec<&KnownBinding> = page.iter().filter(absent).collect();
            if suspects.is_empty() {
                continue;
            }
            // The rows were read after the list: another look tells what came between.
            match listed.mechanism.list(&listed.target).await {
                Ok(now) => {
                    for known in suspects {
                        if !now.contains(&known.binding.handle) {
                            let done = self.user_missing(&known.binding, listed).await?;
                            self.found(
                                Kind::UserMissing,
                                format!("{} on {iid}", known.binding.handle),
                                done,
                            );
                        }
                    }
                }
                Err(error) => {
                    self.unread(&format!("the users of instance {iid}"), &error);
                    return Ok(());
                }
            }
        }
    }
}

/// The users a server knows; none where there is no list of them.
async fn users_of(engine: &Arc<Engine>, instance: &Instance) -> PortResult<Option<Listed>> {
    let Some((mechanism, target)) = target(engine, instance).await? else {
        return Ok(None);
    };
    // Its users are signed tokens: the server knows only those that are revoked.
    if mechanism.states_whole_list() {
        return Ok(None);
    }
    let users = mechanism.list(&target).await?.into_iter().collect();
    Ok(Some(Listed {
        mechanism,
        target,
        users,
    }))
}

/// A secret's place, for people.
fn shown(secret: &BindingRef) -> String {
    format!("{}/{}/{}", secret.tenant, secret.iid, secret.client_id())
}
