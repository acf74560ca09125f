//! New credentials for the administrators of real servers: the operator's command, bindings that do not notice, and a
//! broker that is killed in the middle of it.

use crate::support::audit::{Expected, State};
use crate::support::clients::{self, Access};
use crate::support::home::{Home, signal};
use crate::support::platform::{Platform, Service};
use crate::support::process::{self, Broker};
use crate::support::until;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::time::Duration;

const BOTH: [Service; 2] = [Service::Postgres, Service::Redis];
const LONG: Duration = Duration::from_secs(60);

/// A binding's credentials with somebody else's name and password.
fn instead(credentials: &Value, login: &Value) -> Value {
    let part = |of: &Value| {
        let text = |name: &str| of[name].as_str().unwrap().to_owned();
        format!("//{}:{}@", text("username"), text("password"))
    };
    let uri = credentials["uri"].as_str().unwrap();
    assert!(
        uri.contains(&part(credentials)),
        "the form of the address changed"
    );
    let mut other = credentials.clone();
    other["uri"] = json!(uri.replace(&part(credentials), &part(login)));
    other
}

/// The operation that the command names.
fn named(said: &str) -> String {
    let word = said
        .split("operations show ")
        .nth(1)
        .unwrap_or_else(|| panic!("{said}"));
    word.split('`').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn administrators_get_new_credentials_and_bindings_do_not_notice() {
    let home = Home::new();
    let mut broker = Broker::dev(&home);
    let platform = Platform::dev(&broker, &home);
    let state = State::dev(&home).await;
    let ask = |words: &[&str]| process::operator(&home, words);
    platform.create(Service::Nats, "nats").await;
    let mut bound = Vec::new();
    for service in BOTH {
        platform.create(service, service.name()).await;
        let credentials = platform.bind(service, service.name(), "b").await;
        clients::write(service, &credentials, "key", "value").await;
        bound.push((service, credentials));
    }
    let pids = || BOTH.map(|s| home.leader(&state.iid(s.name())).unwrap());
    let before = pids();
    let administrators = || async {
        let mut all = Vec::new();
        for (service, credentials) in &bound {
            all.push(instead(credentials, &state.admin(service.name()).await));
        }
        all
    };
    // The present administrators get in, the former ones do not, and bindings go on.
    let well = |former: Vec<Value>| async {
        for (((service, credentials), former), now) in bound.iter().zip(former).zip(administrators().await) {
            clients::comes_to(*service, &now, Access::In).await;
            clients::comes_to(*service, &former, Access::Refused).await;
            clients::comes_to(*service, credentials, Access::In).await;
            let value = clients::read(*service, credentials, "key").await;
            assert_eq!(value.as_deref(), Some("value"));
            let other = platform.bind(*service, service.name(), "other").await;
            clients::comes_to(*service, &other, Access::In).await;
            platform.unbind(*service, service.name(), "other").await;
            clients::comes_to(*service, &other, Access::Refused).await;
        }
        assert_eq!(pids(), before, "no server was started again");
    };

    let nats = state.iid("nats");
    let rotate = ["credentials", "rotate"];
    for (more, word) in [
        (&[][..], "--instance"),
        (&["--all", "--instance", &nats], "--instance"),
        (&["--instance", &nats, "--older-than", "1d"], "--older-than"),
        (&["--all", "--older-than", "soon"], "90d"),
        (&["--instance", "nobody"], "There is no instance nobody"),
        (&["--instance", &nats], "nothing was changed"),
    ] {
        let (good, said) = ask(&[&rotate, more].concat());
        assert!(!good && said.contains(word), "{more:?}: {said}");
    }
    let (good, said) = ask(&[&rotate[..], &["--all", "--older-than", "1d"]].concat());
    assert!(
        good && said.contains("0 under way, 0 cannot, 0 not now, 3 not old enough"),
        "{said}"
    );

    let former = administrators().await;
    let (good, said) = ask(&[&rotate[..], &["--all"]].concat());
    assert!(
        good && said.contains("2 under way, 1 cannot, 0 not now"),
        "{said}"
    );
    state.idle().await;
    well(former).await;

    // The servers do not answer, so the work is in the middle; the broker is killed, and its next life ends the work.
    let former = administrators().await;
    for pid in before {
        signal(pid, Signal::SIGSTOP);
    }
    let mut operations = Vec::new();
    for service in BOTH {
        let (good, said) = ask(&[&rotate[..], &["--instance", &state.iid(service.name())]].concat());
        assert!(good, "{said}");
        operations.push(named(&said));
    }
    until("both are at their servers", LONG, || async {
        for id in &operations {
            let (row, _) = state.store.operation(id).await.unwrap().unwrap();
            if row.operation.step != "change" {
                return None;
            }
        }
        Some(())
    })
    .await;
    broker.kill9();
    for pid in before {
        signal(pid, Signal::SIGCONT);
    }
    tokio::task::block_in_place(|| broker.again());
    state.idle().await;
    for id in &operations {
        let (good, said) = ask(&["operations", "show", id]);
        assert!(
            good && said.contains("credentials of") && said.contains("succeeded"),
            "{said}"
        );
    }
    well(former).await;

    let expected = |service: Service, bindings: &[&str]| Expected {
        service,
        id: service.name().into(),
        bindings: bindings.iter().map(ToString::to_string).collect(),
    };
    let all = [
        expected(Service::Postgres, &["b"]),
        expected(Service::Redis, &["b"]),
        expected(Service::Nats, &[]),
    ];
    let wrong = state.audit(&home.instances(), &all).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    let (good, trail) = ask(&["audit", "export"]);
    assert!(good);
    assert_eq!(trail.matches("\"rotate_admin\"").count(), 8, "{trail}");
    for service in [Service::Nats, Service::Postgres, Service::Redis] {
        platform.delete(service, service.name()).await;
    }
    let wrong = state.audit(&home.instances(), &[]).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    state.store.close().await;
    assert!(broker.stop().success());
}
