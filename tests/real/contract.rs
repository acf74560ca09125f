//! What every credential mechanism must do, told once and run against each real server.
//!
//! A server takes part by implementing [`Server`] (how to reach it) and [`Session`] (how an application
//! uses it); [`whole_life`] does the rest. Nothing in here may know which server it talks to.

use async_trait::async_trait;
use chandler::domain::instance::Millis;
use chandler::domain::names;
use chandler::ports::{
    CredentialMechanism, Grant, NewUser, PortErrorKind, PortResult, RevokedHandle, Target,
};
use serde_json::Map;
use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A connection an application holds with a binding's credentials.
#[async_trait]
pub trait Session: Send {
    /// Stores `value` under `key`, making whatever has to hold it (a table, a bucket) when it is missing and the role may.
    async fn write(&mut self, key: &str, value: &str) -> Result<(), String>;

    /// Reads what is stored under `key`.
    async fn read(&mut self, key: &str) -> Result<Option<String>, String>;

    /// Whether this very connection still works; must not reconnect.
    async fn alive(&mut self) -> bool;
}

/// A running server and the mechanism that makes its users.
#[async_trait]
pub trait Server: Send + Sync {
    /// The mechanism under test.
    fn mechanism(&self) -> &dyn CredentialMechanism;

    /// The instance, with an empty list of revoked handles: the kit keeps that list.
    fn target(&self) -> Target;

    /// Connects as an application would, with nothing but what the binding hands out.
    async fn login(&self, user: &NewUser) -> Result<Box<dyn Session>, String>;

    /// Whether [`CredentialMechanism::list`] sees users (not when they exist only as signed tokens).
    fn lists_users(&self) -> bool {
        true
    }
}

/// One binding as the kit holds it.
pub struct Bound {
    /// What it may do.
    pub grant: Grant,
    /// Its user.
    pub user: NewUser,
}

/// A server together with the bindings' history, which mechanisms that state whole lists need.
pub struct Kit<'a> {
    /// The server.
    pub server: &'a dyn Server,
    /// Handed to the mechanism in [`Target::revoked`].
    pub revoked: Vec<RevokedHandle>,
}

/// Now, in milliseconds since the epoch.
pub fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Millis::try_from(since.as_millis()).unwrap()
}

/// A grant for a binding named after `label`, without parameters or expiry.
pub fn grant(label: &str, role: &str) -> Grant {
    Grant {
        bid: names::bid("kit", "instance", label),
        second: false,
        role: role.to_owned(),
        params: Map::new(),
        expires_at: None,
    }
}

/// Calls again while the answer is "may pass" or "somebody else was faster", as the engine does; at most ten times.
pub async fn settle<T, F: Future<Output = PortResult<T>>>(what: &str, mut call: impl FnMut() -> F) -> T {
    let mut last = String::new();
    for _ in 0..10 {
        match call().await {
            Ok(value) => return value,
            Err(e) if matches!(e.kind, PortErrorKind::Transient | PortErrorKind::Conflict) => {
                last = format!("{e} ({})", e.detail);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(e) => panic!("{what}: {e} ({})", e.detail),
        }
    }
    panic!("{what}: did not settle in ten calls: {last}");
}

/// Waits until the session is cut; panics after five seconds.
pub async fn dies(session: &mut dyn Session) {
    for _ in 0..50 {
        let alive = tokio::time::timeout(Duration::from_secs(5), session.alive()).await;
        if !alive.expect("a cut session must not hang") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the session outlived its revocation");
}

impl<'a> Kit<'a> {
    /// A kit for a server that has no bindings yet.
    pub fn new(server: &'a dyn Server) -> Self {
        let revoked = Vec::new();
        Self { server, revoked }
    }

    /// The target as the engine would hand it over now.
    pub fn target(&self) -> Target {
        Target {
            revoked: self.revoked.clone(),
            ..self.server.target()
        }
    }

    /// Makes a user's secret without telling the server.
    pub fn generate(&self, grant: Grant) -> Bound {
        let user = self
            .server
            .mechanism()
            .generate_user(&self.target(), &grant, now())
            .expect("a user can be generated");
        Bound { grant, user }
    }

    /// Generates, issues and verifies a binding.
    pub async fn bind(&self, grant: Grant) -> Bound {
        let bound = self.generate(grant);
        self.issue(&bound).await;
        bound
    }

    /// Issues and verifies; may be repeated.
    pub async fn issue(&self, bound: &Bound) {
        let (mechanism, target) = (self.server.mechanism(), self.target());
        settle("issue", || mechanism.issue(&target, &bound.grant, &bound.user)).await;
        settle("verify", || mechanism.verify(&target, &bound.grant, &bound.user)).await;
    }

    /// Logs in; the server must let the user in.
    pub async fn login(&self, bound: &Bound) -> Box<dyn Session> {
        let session = self.server.login(&bound.user).await;
        session.unwrap_or_else(|e| panic!("{} is refused: {e}", bound.user.handle))
    }

    /// Revokes; may be repeated.
    pub async fn revoke(&mut self, bound: &Bound) {
        let handle = bound.user.handle.clone();
        if !self.revoked.iter().any(|r| r.handle == handle) {
            let at = now();
            self.revoked.push(RevokedHandle { handle, at });
        }
        let (mechanism, target) = (self.server.mechanism(), self.target());
        settle("revoke", || mechanism.revoke(&target, &bound.user.handle)).await;
    }

    /// The server must not let the user in.
    pub async fn refused(&self, bound: &Bound) {
        assert!(
            self.server.login(&bound.user).await.is_err(),
            "{} still gets in",
            bound.user.handle
        );
        let verified = self
            .server
            .mechanism()
            .verify(&self.target(), &bound.grant, &bound.user)
            .await;
        assert!(verified.is_err(), "verify passes for a revoked user");
    }

    /// Exactly these users exist, as far as the mechanism can know.
    pub async fn exist(&self, bound: &[&Bound]) {
        if !self.server.lists_users() {
            return;
        }
        let target = self.target();
        let mut listed = settle("list", || self.server.mechanism().list(&target)).await;
        let mut wanted: Vec<_> = bound.iter().map(|b| b.user.handle.clone()).collect();
        listed.sort();
        wanted.sort();
        assert_eq!(listed, wanted);
    }
}

/// Prepare, bind, use, share, rotate, revoke, use what is left, revoke again.
pub async fn whole_life(server: &dyn Server) {
    let mut kit = Kit::new(server);
    let mechanism = server.mechanism();
    let target = kit.target();
    let settings = mechanism.check_settings(&target.settings);
    assert!(settings.is_empty(), "settings: {settings:?}");

    // Two workers may act for one operation at once, and any call may come again.
    let (one, two) = tokio::join!(
        settle("prepare", || mechanism.prepare(&target)),
        settle("prepare", || mechanism.prepare(&target)),
    );
    assert_eq!((one, two), ((), ()));
    settle("prepare again", || mechanism.prepare(&target)).await;
    kit.exist(&[]).await;

    // The first binding makes things.
    let first = kit.generate(grant("first", "owner"));
    tokio::join!(kit.issue(&first), kit.issue(&first));
    let mut first_session = kit.login(&first).await;
    first_session.write("k", "one").await.expect("an owner writes");
    assert_eq!(first_session.read("k").await, Ok(Some("one".to_owned())));

    // Others work beside it, each as its role allows.
    let writer = kit.bind(grant("writer", "readwrite")).await;
    let reader = kit.bind(grant("reader", "readonly")).await;
    let mut writer_session = kit.login(&writer).await;
    let mut reader_session = kit.login(&reader).await;
    assert_eq!(writer_session.read("k").await, Ok(Some("one".to_owned())));
    writer_session.write("k", "two").await.expect("readwrite writes");
    assert_eq!(reader_session.read("k").await, Ok(Some("two".to_owned())));
    assert!(
        reader_session.write("k", "three").await.is_err(),
        "readonly must not write"
    );
    assert_eq!(first_session.read("k").await, Ok(Some("two".to_owned())));
    kit.exist(&[&first, &writer, &reader]).await;

    // Issuing again with the same secret disturbs nobody.
    kit.issue(&first).await;
    assert!(first_session.alive().await, "re-issue cut a session");
    drop(kit.login(&first).await);

    // Rotation in place: a second user of the same binding under its other name, then the first name's turn again.
    let other = kit
        .bind(Grant {
            second: true,
            ..writer.grant.clone()
        })
        .await;
    assert_ne!(writer.user.handle, other.user.handle);
    let mut other_session = kit.login(&other).await;
    other_session
        .write("k", "in-place")
        .await
        .expect("the second user writes");
    writer_session
        .write("k", "meanwhile")
        .await
        .expect("the first one still writes");
    assert_eq!(other_session.read("k").await, Ok(Some("meanwhile".to_owned())));
    kit.exist(&[&first, &writer, &other, &reader]).await;
    kit.revoke(&writer).await;
    dies(writer_session.as_mut()).await;
    kit.refused(&writer).await;
    other_session
        .write("k", "alone")
        .await
        .expect("the second one goes on");
    let former = writer;
    let writer = kit.bind(former.grant.clone()).await;
    let mut writer_session = kit.login(&writer).await;
    kit.refused(&former).await;
    assert!(
        other_session.alive().await,
        "the first name's turn cut the second"
    );
    kit.revoke(&other).await;
    dies(other_session.as_mut()).await;
    kit.refused(&other).await;
    writer_session
        .write("k", "by-turns")
        .await
        .expect("the third one writes");
    assert_eq!(reader_session.read("k").await, Ok(Some("by-turns".to_owned())));
    kit.exist(&[&first, &writer, &reader]).await;

    // Rotation: the successor comes while the predecessor still works, then the predecessor goes.
    let second = kit.bind(grant("second", "owner")).await;
    assert_ne!(first.user.handle, second.user.handle);
    let mut second_session = kit.login(&second).await;
    second_session
        .write("k", "four")
        .await
        .expect("the successor writes");
    first_session
        .write("k", "five")
        .await
        .expect("the predecessor still writes");
    kit.revoke(&first).await;
    dies(first_session.as_mut()).await;
    kit.refused(&first).await;

    // What the predecessor made is there, and the successor may change it.
    assert_eq!(second_session.read("k").await, Ok(Some("five".to_owned())));
    second_session
        .write("k", "six")
        .await
        .expect("inherited things are writable");
    assert!(writer_session.alive().await && reader_session.alive().await);
    kit.exist(&[&second, &writer, &reader]).await;

    // Revoking again, twice at once, or somebody who never was, is success.
    kit.revoke(&first).await;
    let target = kit.target();
    tokio::join!(
        settle("revoke", || mechanism.revoke(&target, &first.user.handle)),
        settle("revoke", || mechanism.revoke(&target, &first.user.handle)),
    );
    let never = kit.generate(grant("never", "owner"));
    kit.revoke(&never).await;
    kit.refused(&first).await;

    // Preparing again brings nobody back.
    let target = kit.target();
    settle("prepare late", || mechanism.prepare(&target)).await;
    kit.refused(&first).await;

    for (bound, session) in [
        (&writer, &mut writer_session),
        (&reader, &mut reader_session),
        (&second, &mut second_session),
    ] {
        kit.revoke(bound).await;
        dies(session.as_mut()).await;
        kit.refused(bound).await;
    }
    kit.exist(&[]).await;

    // The data outlives every binding.
    let last = kit.bind(grant("last", "owner")).await;
    let mut last_session = kit.login(&last).await;
    assert_eq!(last_session.read("k").await, Ok(Some("six".to_owned())));
    kit.revoke(&last).await;
    dies(last_session.as_mut()).await;
    kit.exist(&[]).await;
}

/// The administrator gets new credentials: the former ones are refused, no binding notices, and a repeat is success.
///
/// `cuts`: whether the server can end sessions that were opened with the former ones.
pub async fn administrator_rotates(server: &dyn Server, cuts: bool) {
    let mut kit = Kit::new(server);
    let (mechanism, before) = (server.mechanism(), kit.target());
    assert!(mechanism.rotates_admin(&before.settings));
    settle("prepare", || mechanism.prepare(&before)).await;
    let bound = kit.bind(grant("tenant", "owner")).await;
    let mut session = kit.login(&bound).await;
    session.write("k", "before").await.expect("an owner writes");

    let thief = NewUser {
        handle: before.admin.text("username").to_owned(),
        secret: before.admin.clone(),
    };
    let mut thief_session = server.login(&thief).await.expect("the administrator logs in");
    assert!(thief_session.alive().await);
    let next = mechanism.generate_admin(&before.settings).unwrap();
    // Two workers may act for one operation at once, and whoever lost the answer asks again.
    let (one, two) = tokio::join!(
        settle("rotate", || mechanism.rotate_admin(&before, &next)),
        settle("rotate", || mechanism.rotate_admin(&before, &next)),
    );
    assert_eq!((one, two), ((), ()));
    settle("rotate again", || mechanism.rotate_admin(&before, &next)).await;
    let after = Target {
        admin: next,
        ..before.clone()
    };
    settle("rotate to the same", || {
        mechanism.rotate_admin(&after, &after.admin)
    })
    .await;
    assert!(server.login(&thief).await.is_err(), "the former ones let in");
    if cuts {
        dies(thief_session.as_mut()).await;
    }
    let refused = mechanism.list(&before).await.expect_err("the former ones let in");
    assert_eq!(
        refused.kind,
        PortErrorKind::Denied,
        "{refused} ({})",
        refused.detail
    );

    // The tenant goes on, and the broker works with the new ones.
    assert!(session.alive().await);
    session.write("k", "after").await.expect("the binding goes on");
    drop(kit.login(&bound).await);
    settle("prepare", || mechanism.prepare(&after)).await;
    let other = kit.generate(grant("other", "readwrite"));
    settle("issue", || mechanism.issue(&after, &other.grant, &other.user)).await;
    settle("verify", || mechanism.verify(&after, &other.grant, &other.user)).await;
    for gone in [&bound, &other] {
        let handle = gone.user.handle.clone();
        kit.revoked.push(RevokedHandle { handle, at: now() });
        let after = Target {
            revoked: kit.revoked.clone(),
            ..after.clone()
        };
        settle("revoke", || mechanism.revoke(&after, &gone.user.handle)).await;
        assert!(server.login(&gone.user).await.is_err(), "a binding is revoked");
    }

    // When neither of the two lets in, it says so and changes nothing.
    let third = mechanism.generate_admin(&before.settings).unwrap();
    let lost = mechanism.rotate_admin(&before, &third).await.unwrap_err();
    assert_eq!(lost.kind, PortErrorKind::Denied, "{lost} ({})", lost.detail);
    settle("list", || mechanism.list(&after)).await;
}
