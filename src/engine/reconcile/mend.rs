//! What is done about a finding, if the operator wants it.
//!
//! What must stay true: nothing is done about something whose row has changed since it was read. What a row proves ended
//! is revoked by an ordinary operation, which nothing else can run beside. Whatever else gives or takes access is put
//! into the audit trail before it is done, and again with how it went.

use super::finding::{Done, Kind, Standing, standing};
use super::{Listed, Walk};
use crate::domain::audit::{Action, Cause, Event, SUCCEEDED};
use crate::domain::binding::Binding;
use crate::domain::delivery::{BindingRef, ClientAuth};
use crate::domain::names;
use crate::domain::operation::OperationState;
use crate::domain::secret::Secret;
use crate::engine::binding_steps::{self, member};
use crate::engine::outside;
use crate::ports::{FoundIdentity, IdentitySpec, PortError, PortResult, secret_name};
use crate::store::{Fail, KnownBinding};

/// What only a new bind brings back.
const BIND_ANEW: &str = "the application's secret is lost with it: bind anew";
/// What is kept nowhere but where it is missing.
const ROTATE: &str = "the broker does not keep these credentials: rotate the binding in place, or bind anew";

impl Walk<'_> {
    pub(super) async fn mend_client(
        &mut self,
        kind: Kind,
        client: &FoundIdentity,
        known: Option<&KnownBinding>,
    ) -> Result<Done, Fail> {
        let Some(identity) = self.engine.ports.identity.clone() else {
            return Ok(Done::Told(kind.advice()));
        };
        match (kind, known, &client.bid) {
            (Kind::ClientEnabled | Kind::ClientEnded, Some(known), _) if self.mend.repair => {
                self.revoke(&known.binding).await
            }
            (Kind::ClientDisabled, Some(known), _) if self.mend.repair => {
                let binding = &known.binding;
                if !self.is_still(&binding.bid, Standing::Valid).await? {
                    return Ok(changed());
                }
                let asked = async {
                    let auth = outside::auth(binding)?;
                    let proof = identity.proof(&binding.reference(), &auth).await?;
                    Ok::<_, PortError>((auth, proof))
                };
                match asked.await {
                    Ok((auth, Some(secret))) => self.ensure_client(binding, auth, secret).await,
                    Ok((_, None)) => Ok(changed()),
                    Err(error) => Ok(failed(&error)),
                }
            }
            (Kind::ClientUnknown, None, Some(bid)) if self.mend.remove => {
                if !self.is_still(bid, Standing::Unknown).await? {
                    return Ok(changed());
                }
                let event = Event::mended(Action::Revoke, "", "", bid, self.engine.now());
                let act = async {
                    identity.disable(bid).await?;
                    identity.delete(bid).await
                };
                self.recorded(event, act, Done::Removed).await
            }
            _ => Ok(Done::Told(kind.advice())),
        }
    }

    pub(super) async fn mend_secret(
        &mut self,
        kind: Kind,
        secret: &BindingRef,
        known: Option<&KnownBinding>,
    ) -> Result<Done, Fail> {
        let before = standing(known, self.began);
        match (kind, known) {
            (Kind::SecretEnded, Some(known)) if self.mend.repair => self.revoke(&known.binding).await,
            (Kind::SecretUnknown | Kind::SecretElsewhere, _) if self.mend.remove => {
                let Some(vault) = self.engine.ports.vault.clone() else {
                    return Ok(Done::Told(kind.advice()));
                };
                if !self.is_still(&secret.bid, before).await? {
                    return Ok(changed());
                }
                let now = self.engine.now();
                let event = Event::mended(Action::Revoke, &secret.tenant, &secret.iid, &secret.bid, now);
                self.recorded(event, vault.withdraw(secret), Done::Removed).await
            }
            _ => Ok(Done::Told(kind.advice())),
        }
    }

    pub(super) async fn mend_user(
        &mut self,
        kind: Kind,
        user: &str,
        listed: &Listed,
        known: Option<&KnownBinding>,
    ) -> Result<Done, Fail> {
        let before = standing(known, self.began);
        let (repair, remove) = (self.mend.repair, self.mend.remove);
        match (kind, known) {
            (Kind::UserEnded, Some(known)) if repair && before == Standing::Ended => {
                self.revoke(&known.binding).await
            }
            (Kind::UserEnded, _) if repair => self.remove_user(user, before, listed).await,
            (Kind::UserUnknown, _) if remove => self.remove_user(user, before, listed).await,
            _ => Ok(Done::Told(kind.advice())),
        }
    }

    /// Takes away a user that its binding, if there is one, does not have.
    async fn remove_user(&mut self, user: &str, before: Standing, listed: &Listed) -> Result<Done, Fail> {
        let bid = names::bid_of_user(user).unwrap_or_default();
        if !self.is_still(bid, before).await? {
            return Ok(changed());
        }
        let iid = &listed.target.iid;
        let event = Event::mended(Action::Revoke, "", iid, bid, self.engine.now());
        let act = listed.mechanism.revoke(&listed.target, user);
        self.recorded(event, act, Done::Removed).await
    }

    /// A valid binding whose client was not seen. A page may have slipped by, so it is asked for by name.
    pub(super) async fn client_missing(&mut self, binding: &Binding) -> Result<(), Fail> {
        let Some(identity) = self.engine.ports.identity.clone() else {
            return Ok(());
        };
        let what = binding.reference().client_id();
        let asked = async {
            let auth = outside::auth(binding)?;
            let there = identity.proof(&binding.reference(), &auth).await?.is_some();
            Ok::<_, PortError>((there, self.sealed(binding).await?, auth))
        };
        let (sealed, auth) = match asked.await {
            Ok((true, ..)) => return Ok(()),
            Ok((false, sealed, auth)) => (sealed, auth),
            Err(error) => {
                self.unread(&what, &error);
                return Ok(());
            }
        };
        let never_had_one = sealed
            .as_ref()
            .is_some_and(|sealed| !sealed.expose().contains_key("client"));
        if never_had_one || !self.is_still(&binding.bid, Standing::Valid).await? {
            return Ok(());
        }
        let secret = match (&sealed, &auth) {
            (Some(sealed), _) => Some(member(sealed, "client")),
            (None, ClientAuth::ClientSecret) => None,
            // Nothing secret was handed out: a client made anew is the same.
            (None, _) => identity.generate(&auth).ok(),
        };
        let done = match secret {
            _ if !self.mend.repair => Done::Told(Kind::ClientMissing.advice()),
            Some(secret) => self.ensure_client(binding, auth, secret).await?,
            None => Done::Told(BIND_ANEW),
        };
        self.found(Kind::ClientMissing, what, done);
        Ok(())
    }

    /// A valid binding whose secret was not seen in its place.
    pub(super) async fn secret_missing(&mut self, binding: &Binding) -> Result<(), Fail> {
        let Some(vault) = self.engine.ports.vault.clone() else {
            return Ok(());
        };
        let place = binding.reference();
        let what = super::shown(&place);
        let asked = async {
            let there = vault.generation(&place).await?;
            Ok::<_, PortError>((there, self.sealed(binding).await?))
        };
        let sealed = match asked.await {
            Ok((Some(_), _)) => return Ok(()),
            Ok((None, sealed)) => sealed,
            Err(error) => {
                self.unread(&what, &error);
                return Ok(());
            }
        };
        let never_had_one = sealed
            .as_ref()
            .is_some_and(|sealed| !sealed.expose().contains_key("client"));
        if never_had_one || !self.is_still(&binding.bid, Standing::Valid).await? {
            return Ok(());
        }
        let done = match &sealed {
            _ if !self.mend.repair => Done::Told(Kind::SecretMissing.advice()),
            None => Done::Told(ROTATE),
            Some(sealed) => {
                let notes = [
                    ("platform", binding.platform.clone()),
                    ("instance", binding.iid.clone()),
                ];
                let credentials = member(sealed, "credentials");
                let act = vault.publish(&place, 0, &credentials, &notes, binding.expires_at);
                self.recorded(self.repair_of(binding), act, Done::Repaired)
                    .await?
            }
        };
        self.found(Kind::SecretMissing, what, done);
        Ok(())
    }

    /// What is done about a valid binding whose user is not on its server.
    pub(super) async fn user_missing(&mut self, binding: &Binding, listed: &Listed) -> Result<Done, Fail> {
        if !self.mend.repair {
            return Ok(Done::Told(Kind::UserMissing.advice()));
        }
        if !self.is_still(&binding.bid, Standing::Valid).await? {
            return Ok(changed());
        }
        let stored = match self.sealed(binding).await {
            Ok(Some(stored)) => stored,
            Ok(None) => return Ok(Done::Told(ROTATE)),
            Err(error) => return Ok(failed(&error)),
        };
        let second = binding.handle == names::second_user(&binding.bid);
        let (grant, user) = binding_steps::user(self.engine, binding, &stored, second);
        let act = async {
            listed.mechanism.issue(&listed.target, &grant, &user).await?;
            listed.mechanism.verify(&listed.target, &grant, &user).await
        };
        self.recorded(self.repair_of(binding), act, Done::Repaired).await
    }

    async fn ensure_client(
        &mut self,
        binding: &Binding,
        auth: ClientAuth,
        secret: Secret,
    ) -> Result<Done, Fail> {
        let Some(identity) = self.engine.ports.identity.clone() else {
            return Ok(Done::Told(Kind::ClientMissing.advice()));
        };
        let served = self.engine.served();
        let attributes = &binding.attributes;
        let plan = served.catalog.plan(&attributes.service_id, &attributes.plan_id);
        let spec = IdentitySpec {
            binding: binding.reference(),
            label: plan.map_or_else(String::new, |(offering, plan)| {
                format!("{}/{}", offering.name, plan.name)
            }),
            auth,
            secret,
        };
        self.recorded(self.repair_of(binding), identity.ensure(&spec), Done::Repaired)
            .await
    }

    /// Opens a revocation of a binding that has ended.
    async fn revoke(&mut self, binding: &Binding) -> Result<Done, Fail> {
        if self.engine.revoke_by_ourselves(binding, Cause::Operator).await? {
            return Ok(Done::Begun);
        }
        // An earlier finding about the same binding has opened one.
        let busy = self
            .engine
            .store
            .bindings_among(std::slice::from_ref(&binding.bid))
            .await?;
        Ok(if busy.first().is_some_and(|known| known.busy) {
            Done::Begun
        } else {
            changed()
        })
    }

    /// Whether the row says of a binding what it said when it was compared.
    pub(super) async fn is_still(&mut self, bid: &str, before: Standing) -> Result<bool, Fail> {
        let bids = [bid.to_owned()];
        let now = self.engine.store.bindings_among(&bids).await?;
        Ok(standing(now.first(), self.began) == before)
    }

    async fn sealed(&self, binding: &Binding) -> PortResult<Option<Secret>> {
        let name = secret_name::binding(&binding.iid, &binding.bid);
        self.engine.ports.secrets.get(&name).await
    }

    fn repair_of(&self, binding: &Binding) -> Event {
        let now = self.engine.now();
        Event::mended(Action::Repair, &binding.platform, &binding.iid, &binding.bid, now)
    }

    /// Does something that gives or takes access, and records it before and after.
    async fn recorded(
        &self,
        event: Event,
        act: impl Future<Output = PortResult<()>>,
        done: Done,
    ) -> Result<Done, Fail> {
        self.engine.store.audit(event.clone()).await?;
        let result = act.await;
        let outcome = if result.is_ok() {
            SUCCEEDED
        } else {
            OperationState::Failed.as_str()
        };
        self.engine
            .store
            .audit(event.ended(outcome, self.engine.now()))
            .await?;
        Ok(match result {
            Ok(()) => done,
            Err(error) => failed(&error),
        })
    }
}

fn changed() -> Done {
    Done::Failed("it changed meanwhile; look again".into())
}

fn failed(error: &PortError) -> Done {
    tracing::warn!(detail = %error.detail, "a finding could not be put right");
    Done::Failed(error.message.clone())
}
