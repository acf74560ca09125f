//! The comparison of bindings with what is there, over a fake identity provider and a fake vault: every kind of finding,
//! what is done about it and what is not, sources that do not answer, and ten thousand bindings.

mod outside;

use crate::support::broker::{Choices, TestBroker};
use crate::support::catalog::{self, ids};
use chandler::domain::audit::Head;
use chandler::domain::binding::Binding;
use chandler::domain::catalog::{Catalog, KnownMechanisms};
use chandler::domain::delivery::BindingRef;
use chandler::domain::names;
use chandler::engine::{Done, Engine, Finding, Kind, Mend, Ports, Reconciler, Report, Runner, Settings};
use chandler::ports::secret_name;
use chandler::store::Store;
use outside::{Outside, SERVED};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const I: &str = "/v2/service_instances/one";

/// A broker with an instance, and an engine over the same rows that knows an identity provider and a vault.
struct Scene {
    broker: TestBroker,
    outside: Arc<Outside>,
    engine: Arc<Engine>,
}

impl Scene {
    async fn start() -> Self {
        Self::on(None).await
    }

    async fn on(database: Option<String>) -> Self {
        let mut choices = Choices {
            database,
            ..Choices::default()
        };
        choices.engine.runs_work = false;
        let broker = TestBroker::with(choices).await;
        broker.provisioned("one").await;
        let outside = Arc::new(Outside::default());
        let ports = Ports {
            identity: Some(outside.clone()),
            vault: Some(outside.clone()),
            ..broker.engine.ports().clone()
        };
        let engine = Engine::new(broker.engine.store().clone(), ports, Settings::default());
        let catalog = Catalog::load(&catalog::sources(), &KnownMechanisms).unwrap();
        engine.set_catalog(catalog).await.unwrap();
        Self {
            broker,
            outside,
            engine,
        }
    }

    fn store(&self) -> &Store {
        self.engine.store()
    }

    /// A binding that is there as it should be; by reference: the broker keeps nothing secret of it.
    async fn bound(&self, name: &str, by_reference: bool) -> Binding {
        let path = format!("{I}/service_bindings/{name}?accepts_incomplete=true");
        self.broker.put(&path, &catalog::bind_body()).await.expect(202);
        self.broker.run_until_idle().await;
        let bid = names::bid("cf", "one", name);
        let binding = self.store().binding(&bid).await.unwrap().unwrap().binding;
        let secrets = &self.engine.ports().secrets;
        let sealed = secret_name::binding(&binding.iid, &bid);
        let mut stored = secrets.get(&sealed).await.unwrap().unwrap();
        secrets.destroy(&sealed).await.unwrap();
        if !by_reference {
            stored.insert("client", json!({"client_secret": format!("of {name}")}));
            // Put back behind the store's refusal to take secrets of what is made already.
            self.set_state(&bid, "creating").await;
            secrets.create(&sealed, &stored).await.unwrap();
            self.set_state(&bid, "ready").await;
        }
        self.outside
            .clients
            .lock()
            .unwrap()
            .insert(names::client_id(&bid), (true, format!("of {name}")));
        self.outside.secrets.lock().unwrap().insert(place(&binding));
        // What changed a moment ago is left to the next comparison.
        self.broker.advance(Duration::from_secs(1));
        binding
    }

    async fn set_state(&self, bid: &str, state: &str) {
        let (bid, state) = (
            bid.to_owned(),
            chandler::domain::binding::BindingState::parse(state).unwrap(),
        );
        self.store()
            .write(move |tx| {
                let bid = bid.clone();
                Box::pin(async move { tx.set_binding_state(&bid, state, false, 1).await })
            })
            .await
            .unwrap();
    }

    async fn unbound(&self, name: &str) {
        let path = format!("{I}/service_bindings/{name}?accepts_incomplete=true&{}", ids());
        self.broker.delete(&path).await.expect(202);
        self.broker.run_until_idle().await;
        self.broker.advance(Duration::from_secs(1));
    }

    /// Runs what is due on the engine that knows the identity provider and the vault.
    async fn work(&self) {
        for _ in 0..100 {
            Runner::new(self.engine.clone()).run_due().await;
            match self.store().open_operations().await.unwrap().0 {
                0 => return self.broker.advance(Duration::from_secs(1)),
                _ => self.broker.advance(Duration::from_secs(1)),
            }
        }
        panic!("operations do not come to an end");
    }

    async fn compare(&self, mend: Mend) -> (Vec<(Kind, String, Done)>, Report) {
        let mut found = Vec::new();
        let mut tell = |f: &Finding| found.push((f.kind, f.what.clone(), f.done.clone()));
        let report = Reconciler::new(self.engine.clone())
            .once(mend, &mut tell)
            .await
            .unwrap();
        found.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        (found, report)
    }

    async fn agrees(&self) {
        let (found, report) = self.compare(Mend::default()).await;
        assert_eq!((found, report.left), (Vec::new(), 0));
        let kinds: Vec<Kind> = report.found.keys().copied().collect();
        assert_eq!(kinds, Kind::ALL, "every kind was looked at");
    }

    /// The trail, without its chain.
    async fn told(&self) -> Vec<String> {
        let mut at = Head::start();
        let records = self.store().audit_page(0, 10_000).await.unwrap();
        for record in &records {
            at.follow(record).unwrap();
        }
        let word = |r: &chandler::domain::audit::Record| {
            format!(
                "{} {} {} {}",
                r.event.action, r.event.outcome, r.event.cause, r.event.binding
            )
        };
        records.iter().map(word).collect()
    }

    async fn end(self) {
        self.broker.deleted("one").await;
        self.broker.end().await;
    }
}

fn place(binding: &Binding) -> BindingRef {
    BindingRef {
        tenant: binding.platform.clone(),
        iid: binding.iid.clone(),
        bid: binding.bid.clone(),
    }
}

fn kinds(found: &[(Kind, String, Done)]) -> Vec<Kind> {
    found.iter().map(|f| f.0).collect()
}

const REPAIR: Mend = Mend {
    repair: true,
    remove: false,
};
const REMOVE: Mend = Mend {
    repair: false,
    remove: true,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_agrees_is_no_finding() {
    let scene = Scene::start().await;
    scene.agrees().await;
    for n in 0..3 {
        scene.bound(&format!("b{n}"), n % 2 == 0).await;
    }
    scene.agrees().await;
    assert_eq!(
        scene.outside.single.load(Ordering::SeqCst),
        0,
        "nothing is asked about single bindings"
    );
    // A client that slipped by between two pages is asked for by name.
    let slipped = names::client_id(&names::bid("cf", "one", "b1"));
    scene.outside.slips.lock().unwrap().insert(slipped);
    scene.agrees().await;
    assert_eq!(scene.outside.single.load(Ordering::SeqCst), 1);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_row_knows_is_told_and_goes_only_when_asked() {
    let scene = Scene::start().await;
    let kept = scene.bound("kept", true).await;
    let ghost = names::bid("cf", "one", "ghost");
    let ghosts = BindingRef {
        bid: ghost.clone(),
        ..place(&kept)
    };
    let elsewhere = BindingRef {
        tenant: "k8s".into(),
        ..place(&kept)
    };
    let second = names::second_user(&kept.bid);
    let strange = ["osb-b-*", "osb-b-", "osb-b-../../x"];
    {
        let mut clients = scene.outside.clients.lock().unwrap();
        clients.insert(names::client_id(&ghost), (true, "x".into()));
        for name in strange {
            clients.insert(name.into(), (true, "x".into()));
        }
        scene
            .outside
            .secrets
            .lock()
            .unwrap()
            .extend([ghosts.clone(), elsewhere.clone()]);
        let mut instances = scene.broker.world.instances.lock().unwrap();
        let users = &mut instances.get_mut(&kept.iid).unwrap().users;
        users.insert(names::backend_user(&ghost), ("p".into(), "owner".into()));
        users.insert(second.clone(), ("p".into(), "owner".into()));
    }
    let expected = [
        Kind::ClientStrange,
        Kind::ClientStrange,
        Kind::ClientStrange,
        Kind::ClientUnknown,
        Kind::SecretUnknown,
        Kind::SecretElsewhere,
        Kind::UserUnknown,
        Kind::UserUnknown,
    ];
    for mend in [Mend::default(), REPAIR] {
        let (found, report) = scene.compare(mend).await;
        assert_eq!(kinds(&found), expected, "{mend:?}");
        assert!(found.iter().all(|f| matches!(f.2, Done::Told(_))), "{found:?}");
        assert_eq!((report.left, report.found[&Kind::ClientStrange]), (8, 3));
    }
    let before = scene.told().await.len();
    let (found, report) = scene.compare(REMOVE).await;
    assert_eq!(kinds(&found), expected);
    assert_eq!(
        report.left, 3,
        "whoever made strange names has to be found by a person"
    );
    let (found, _) = scene.compare(REMOVE).await;
    assert_eq!(kinds(&found), expected[..3], "the rest is gone");
    let told = scene.told().await[before..].to_vec();
    let pair = |bid: &str| {
        [
            format!("revoke accepted operator {bid}"),
            format!("revoke succeeded operator {bid}"),
        ]
    };
    let mut recorded = [
        pair(&ghost),
        pair(&ghost),
        pair(&kept.bid),
        pair(&ghost),
        pair(&kept.bid),
    ]
    .concat();
    recorded.sort();
    let mut told = told;
    told.sort();
    assert_eq!(told, recorded, "each removal is in the trail, before and after");
    for name in strange {
        scene.outside.clients.lock().unwrap().remove(name);
    }
    scene.agrees().await;
    assert!(
        scene.broker.world.users().contains(&kept.handle),
        "what is known stays"
    );
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_is_revoked_once_more_when_asked() {
    let scene = Scene::start().await;
    let binding = scene.bound("a", true).await;
    scene.unbound("a").await;
    let client = names::client_id(&binding.bid);
    let password = ("p".to_owned(), "owner".to_owned());
    let insert_user = || {
        let mut instances = scene.broker.world.instances.lock().unwrap();
        instances
            .get_mut(&binding.iid)
            .unwrap()
            .users
            .insert(binding.handle.clone(), password.clone());
    };
    insert_user();
    let expected = [Kind::ClientEnabled, Kind::SecretEnded, Kind::UserEnded];
    for mend in [Mend::default(), REMOVE] {
        let (found, report) = scene.compare(mend).await;
        assert_eq!((kinds(&found), report.left), (expected.to_vec(), 3), "{mend:?}");
    }
    scene.outside.clients.lock().unwrap().get_mut(&client).unwrap().0 = false;
    let (found, _) = scene.compare(Mend::default()).await;
    assert_eq!(found[0].0, Kind::ClientEnded, "shut out, but still there");
    let (found, report) = scene.compare(REPAIR).await;
    assert_eq!(report.left, 0);
    assert!(
        found.iter().all(|f| f.2 == Done::Begun),
        "one revocation for all of it: {found:?}"
    );
    let open = scene.store().open_operations().await.unwrap().0;
    assert_eq!(open, 1);
    let (found, _) = scene.compare(REPAIR).await;
    assert!(found.is_empty(), "it is being worked on: {found:?}");
    scene.work().await;
    assert!(!scene.broker.world.users().contains(&binding.handle));
    let told = scene.told().await;
    assert_eq!(
        told[told.len() - 2],
        format!("revoke accepted operator {}", binding.bid)
    );
    assert_eq!(
        told[told.len() - 1],
        format!("revoke succeeded operator {}", binding.bid)
    );
    assert!(scene.outside.clients.lock().unwrap().is_empty());
    assert!(scene.outside.secrets.lock().unwrap().is_empty());
    scene.agrees().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_is_put_back_where_the_broker_has_what_it_takes() {
    let scene = Scene::start().await;
    let inline = scene.bound("inline", false).await;
    let reference = scene.bound("reference", true).await;
    let lose = |binding: &Binding| {
        scene
            .outside
            .clients
            .lock()
            .unwrap()
            .remove(&names::client_id(&binding.bid));
        scene.outside.secrets.lock().unwrap().remove(&place(binding));
        let mut instances = scene.broker.world.instances.lock().unwrap();
        instances
            .get_mut(&binding.iid)
            .unwrap()
            .users
            .remove(&binding.handle);
    };
    lose(&inline);
    lose(&reference);
    let expected = [Kind::ClientMissing, Kind::SecretMissing, Kind::UserMissing];
    for mend in [Mend::default(), REMOVE] {
        let (found, report) = scene.compare(mend).await;
        assert_eq!(report.left, 6, "{mend:?}");
        for kind in expected {
            assert_eq!(report.found[&kind], 2, "{mend:?} {found:?}");
        }
    }
    let before = scene.told().await.len();
    let (found, report) = scene.compare(REPAIR).await;
    assert_eq!((found.len(), report.left), (6, 3));
    for (kind, what, done) in found {
        let is_inline = what.contains(&inline.bid);
        match (is_inline, kind, done) {
            (true, _, Done::Repaired) => {}
            (false, Kind::ClientMissing, Done::Told(what)) => assert!(what.contains("bind anew")),
            (false, _, Done::Told(what)) => assert!(what.contains("rotate")),
            other => panic!("{what}: {other:?}"),
        }
    }
    let repaired = format!("repair succeeded operator {}", inline.bid);
    assert_eq!(
        scene.told().await[before..]
            .iter()
            .filter(|t| **t == repaired)
            .count(),
        3
    );
    let client = scene.outside.clients.lock().unwrap()[&names::client_id(&inline.bid)].clone();
    assert_eq!(
        client,
        (true, "of inline".to_owned()),
        "the secret that applications have"
    );
    let got = scene
        .broker
        .get(&format!("{I}/service_bindings/inline"))
        .await
        .expect(200);
    let password = got.body["credentials"]["password"].as_str().unwrap();
    assert!(
        scene.broker.world.lets_in(&inline.handle, password),
        "the password that applications have"
    );
    let (found, _) = scene.compare(REPAIR).await;
    assert_eq!(
        kinds(&found),
        expected,
        "what only a rotation or a new bind brings back is told again"
    );
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_valid_binding_that_is_shut_out_is_let_in_again() {
    let scene = Scene::start().await;
    let binding = scene.bound("a", true).await;
    let client = names::client_id(&binding.bid);
    scene.outside.clients.lock().unwrap().get_mut(&client).unwrap().0 = false;
    let (found, _) = scene.compare(Mend::default()).await;
    assert_eq!(kinds(&found), [Kind::ClientDisabled]);
    let (found, report) = scene.compare(REPAIR).await;
    assert_eq!((found[0].2.clone(), report.left), (Done::Repaired, 0));
    assert_eq!(
        scene.outside.clients.lock().unwrap()[&client],
        (true, "of a".to_owned())
    );
    scene.agrees().await;
    scene.end().await;
}

/// A binding that was rotated in place has two users for a while; one that was rotated out for good goes by repair.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_a_rotated_binding_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/rotated.db?mode=rwc", dir.path().display());
    let scene = Scene::on(Some(url.clone())).await;
    let binding = scene.bound("a", true).await;
    let second = names::second_user(&binding.bid);
    let insert_user = || {
        let mut instances = scene.broker.world.instances.lock().unwrap();
        let users = &mut instances.get_mut(&binding.iid).unwrap().users;
        users.insert(second.clone(), ("p".into(), "owner".into()));
    };
    insert_user();
    let pool = sqlx::AnyPool::connect(&url).await.unwrap();
    let run = |sql: &'static str| sqlx::query(sql).execute(&pool);
    run("UPDATE bindings SET rotations = 1").await.unwrap();
    run(
        "INSERT INTO binding_users (bid, handle, iid, generation, state, shown, due_at, revoked_at) \
         SELECT bid, handle || '_r', iid, 1, 'former', 1, 9000000000000, NULL FROM bindings",
    )
    .await
    .unwrap();
    scene.agrees().await;
    run("UPDATE binding_users SET state = 'revoked', due_at = NULL, revoked_at = 5")
        .await
        .unwrap();
    pool.close().await;
    for mend in [Mend::default(), REMOVE] {
        let (found, _) = scene.compare(mend).await;
        assert_eq!(kinds(&found), [Kind::UserEnded]);
        assert!(found[0].1.starts_with(&second), "{found:?}");
    }
    let (found, report) = scene.compare(REPAIR).await;
    assert_eq!((kinds(&found), report.left), (vec![Kind::UserEnded], 0));
    assert_eq!(
        scene.broker.world.users(),
        std::slice::from_ref(&binding.handle),
        "and the binding stays valid"
    );
    scene.agrees().await;
    scene.end().await;
}

/// An identity provider that does not answer says nothing about bindings: their clients are not missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_looked_at_is_told_as_that() {
    let scene = Scene::start().await;
    let binding = scene.bound("a", true).await;
    scene.outside.away.store(true, Ordering::SeqCst);
    scene.broker.world.stop(&binding.iid);
    let (found, report) = scene
        .compare(Mend {
            repair: true,
            remove: true,
        })
        .await;
    assert_eq!(kinds(&found), [Kind::Unread, Kind::Unread, Kind::Unread]);
    assert_eq!(report.left, 3);
    for kind in [
        Kind::ClientMissing,
        Kind::ClientUnknown,
        Kind::SecretMissing,
        Kind::SecretUnknown,
    ] {
        assert!(!report.found.contains_key(&kind), "{kind} keeps its last count");
    }
    scene.outside.away.store(false, Ordering::SeqCst);
    scene
        .broker
        .world
        .instances
        .lock()
        .unwrap()
        .get_mut(&binding.iid)
        .unwrap()
        .running = true;
    scene.agrees().await;
    // Gone between the pages and the question: nothing is made of it.
    let client = names::client_id(&binding.bid);
    scene.outside.slips.lock().unwrap().insert(client);
    scene.agrees().await;
    scene.end().await;
}

/// A binding made before there was an identity provider has sealed credentials and no client: that is how it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bindings_from_before_the_vault_are_left_alone() {
    let scene = Scene::start().await;
    scene
        .broker
        .put(
            &format!("{I}/service_bindings/old?accepts_incomplete=true"),
            &catalog::bind_body(),
        )
        .await
        .expect(202);
    scene.broker.run_until_idle().await;
    scene.broker.advance(Duration::from_secs(1));
    scene.agrees().await;
    scene.end().await;
}

/// Ten thousand bindings: a page in memory, a question for each page, no question about a single one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_bindings_a_page_at_a_time() {
    const MANY: usize = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/many.db?mode=rwc", dir.path().display());
    let scene = Scene::on(Some(url.clone())).await;
    let first = scene.bound("first", true).await;

    let pool = sqlx::AnyPool::connect(&url).await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    sqlx::query("BEGIN").execute(&mut *connection).await.unwrap();
    for n in 1..MANY {
        let bid = names::bid("cf", "one", &n.to_string());
        let handle = names::backend_user(&bid);
        sqlx::query(
            "INSERT INTO bindings (bid, iid, platform, binding_id, attributes, requested, state, handle, residue, created_at, updated_at) \
             SELECT $1, iid, platform, $2, attributes, requested, state, $3, residue, created_at, updated_at FROM bindings WHERE bid = $4",
        )
        .bind(&bid)
        .bind(format!("\"{n}\""))
        .bind(&handle)
        .bind(&first.bid)
        .execute(&mut *connection)
        .await
        .unwrap();
        scene
            .outside
            .clients
            .lock()
            .unwrap()
            .insert(names::client_id(&bid), (true, "x".into()));
        scene
            .outside
            .secrets
            .lock()
            .unwrap()
            .insert(BindingRef { bid, ..place(&first) });
        let mut instances = scene.broker.world.instances.lock().unwrap();
        let users = &mut instances.get_mut(&first.iid).unwrap().users;
        users.insert(handle, ("p".into(), "owner".into()));
    }
    sqlx::query("COMMIT").execute(&mut *connection).await.unwrap();
    drop(connection);
    pool.close().await;

    let began = Instant::now();
    let (found, report) = scene.compare(Mend::default()).await;
    assert_eq!((found, report.left), (Vec::new(), 0));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let many = MANY as u64;
    assert_eq!(report.looked_at, [many, many, many, 0]);
    assert!(report.most_held <= 200, "{}", report.most_held);
    let served = scene.outside.pages.load(Ordering::SeqCst);
    assert!(served <= 2 * (MANY / SERVED + 1), "{served} pages");
    assert_eq!(
        scene.outside.single.load(Ordering::SeqCst),
        0,
        "nothing was asked about a single binding"
    );
    // Each page of the world is one question; users come in pages of 200, bindings are read three times in such pages.
    let lookups = report.lookups as usize;
    assert!(lookups <= served + MANY / 200 + 1, "{lookups} lookups");
    assert!(
        report.pages as usize <= served + 3 * (MANY / 200 + 1) + 1,
        "{} pages",
        report.pages
    );

    // One of each among them all.
    let some = names::bid("cf", "one", "77");
    scene
        .outside
        .clients
        .lock()
        .unwrap()
        .remove(&names::client_id(&some));
    scene.outside.secrets.lock().unwrap().remove(&BindingRef {
        bid: some.clone(),
        ..place(&first)
    });
    scene
        .broker
        .world
        .instances
        .lock()
        .unwrap()
        .get_mut(&first.iid)
        .unwrap()
        .users
        .remove(&names::backend_user(&some));
    let (found, _) = scene.compare(Mend::default()).await;
    assert_eq!(
        kinds(&found),
        [Kind::ClientMissing, Kind::SecretMissing, Kind::UserMissing]
    );
    assert!(found.iter().all(|f| f.1.contains(&some)));
    scene.end().await;
}
