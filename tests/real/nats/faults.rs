//! Forged tokens, servers that are down, foreign or silent, clusters, and what must never be printed.

use super::{App, Server, mechanism};
use crate::contract::{self, Kit, Server as _, settle};
use crate::support::{Process, endpoint, free_port};
use chandler::domain::secret::Secret;
use chandler::ports::{CredentialMechanism, NewUser, PortError, PortErrorKind, Target};
use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

/// The admin secrets of `real`, with these members taken from `own`.
fn mixed(real: &Secret, own: &Secret, members: &[&str]) -> Secret {
    let mut mix = Secret::new(real.expose().clone());
    for member in members {
        mix.insert(*member, own.text(member).into());
    }
    mix
}

#[tokio::test]
async fn forged_tokens_are_refused() {
    let server = Server::prepared().await;
    let own = mechanism().generate_admin(&Map::new()).unwrap();
    let grant = contract::grant("forged", "owner");
    for members in [
        // Everything of one's own.
        &["account", "account_signing_seed"][..],
        // Signed by a key of one's own, in the name of the real account.
        &["account_signing_seed"],
        // Signed by the real key, for an account of one's own.
        &["account"],
    ] {
        let target = Target {
            admin: mixed(&server.admin, &own, members),
            ..server.target()
        };
        let user = server
            .mechanism
            .generate_user(&target, &grant, contract::now())
            .unwrap();
        assert!(
            server.connect(user.secret.text("creds"), None).await.is_err(),
            "{members:?}"
        );
        let error = server
            .mechanism
            .verify(&server.target(), &grant, &user)
            .await
            .unwrap_err();
        assert_eq!(error.kind, PortErrorKind::Denied, "{members:?}");
    }

    // The seed of one binding does not fit the JWT of another.
    let kit = Kit::new(&server);
    let one = kit.bind(contract::grant("one", "owner")).await;
    let two = kit.bind(contract::grant("two", "readonly")).await;
    let mut secret = Secret::new(one.user.secret.expose().clone());
    secret.insert("seed", two.user.secret.text("seed").into());
    let crossed = NewUser {
        handle: one.user.handle.clone(),
        secret,
    };
    assert!(
        server
            .mechanism
            .verify(&server.target(), &grant, &crossed)
            .await
            .is_err()
    );

    // An account pushed by another operator is not believed, neither by the server nor by us.
    let foreign = Target {
        admin: mixed(&server.admin, &own, &["operator_seed", "operator_public"]),
        ..server.target()
    };
    assert!(server.mechanism.prepare(&foreign).await.is_err());
    let target = server.target();
    settle("prepare", || server.mechanism.prepare(&target)).await;
    kit.issue(&one).await;
}

#[tokio::test]
async fn a_server_that_is_down_silent_or_foreign_is_told_apart_in_time() {
    let server = Server::prepared().await;
    let kit = Kit::new(&server);
    let bound = kit.bind(contract::grant("one", "owner")).await;
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let foreign = Server::prepared().await;

    for (port, kind) in [
        (free_port(), PortErrorKind::Transient),
        (silent.local_addr().unwrap().port(), PortErrorKind::Transient),
        (foreign.port(), PortErrorKind::Denied),
    ] {
        let target = Target {
            endpoint: endpoint("client", port),
            ..server.target()
        };
        let m = &server.mechanism;
        let start = Instant::now();
        let errors: Vec<PortError> = vec![
            m.issue(&target, &bound.grant, &bound.user).await.unwrap_err(),
            m.verify(&target, &bound.grant, &bound.user).await.unwrap_err(),
        ];
        assert!(start.elapsed() < Duration::from_secs(16), "{:?}", start.elapsed());
        for error in errors {
            assert_eq!(error.kind, kind, "{error:?}");
        }
    }
}

/// A server that stops answering in the middle of a call.
#[tokio::test]
async fn a_frozen_server_does_not_hold_a_call() {
    let server = Server::prepared().await;
    let kit = Kit::new(&server);
    let bound = kit.bind(contract::grant("one", "owner")).await;
    server.signal(Signal::SIGSTOP);
    let start = Instant::now();
    let error = server
        .mechanism
        .revoke(&kit.target(), &bound.user.handle)
        .await
        .unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Transient, "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
    server.signal(Signal::SIGCONT);
    let mut kit = kit;
    kit.revoke(&bound).await;
    kit.refused(&bound).await;
}

#[tokio::test]
async fn nothing_secret_is_printed() {
    let server = Server::prepared().await;
    let kit = Kit::new(&server);
    let bound = kit.bind(contract::grant("one", "owner")).await;
    let mut printed = vec![
        format!("{:?}", bound.user),
        format!("{:?}", kit.target()),
        format!("{:?}", bound.grant),
    ];
    let broken = |members: &[&str]| {
        let mut admin = Secret::new(server.admin.expose().clone());
        for member in members {
            let text = server.admin.text(member).to_owned();
            admin.insert(*member, text[..text.len() - 1].into());
        }
        Target {
            admin,
            ..server.target()
        }
    };
    let m = &server.mechanism;
    for members in [
        &["operator_seed"][..],
        &["system_user_seed"],
        &["system_user_jwt"],
        &["account_signing_seed"],
        &["account"],
    ] {
        let target = broken(members);
        let mut errors = vec![];
        errors.extend(m.prepare(&target).await.err());
        errors.extend(m.issue(&target, &bound.grant, &bound.user).await.err());
        errors.extend(m.generate_user(&target, &bound.grant, 0).err());
        printed.extend(errors.iter().map(|e| format!("{e} {e:?}")));
    }
    let expired = NewUser {
        handle: bound.user.handle.clone(),
        secret: Secret::from_pairs([("jwt", "x"), ("seed", "y")]),
    };
    let error = m
        .verify(&server.target(), &bound.grant, &expired)
        .await
        .unwrap_err();
    printed.push(format!("{error} {error:?}"));
    assert!(printed.len() > 8, "too few errors: {printed:?}");

    let secrets = server
        .admin
        .expose()
        .iter()
        .chain(bound.user.secret.expose().iter())
        .filter(|(name, _)| name.contains("seed") || name.contains("jwt") || name.as_str() == "creds")
        .filter_map(|(_, value)| value.as_str());
    for secret in secrets {
        // A part is as bad as the whole.
        let part = &secret[secret.len() / 2..secret.len() / 2 + 20];
        for line in &printed {
            assert!(!line.contains(part), "{line}");
        }
    }
}

#[tokio::test]
async fn admin_secrets_are_complete_and_never_the_same() {
    let m = mechanism();
    let (one, two) = (
        m.generate_admin(&Map::new()).unwrap(),
        m.generate_admin(&Map::new()).unwrap(),
    );
    assert_eq!(one.expose().len(), 13);
    for (name, value) in one.expose() {
        let text = value.as_str().unwrap();
        assert!(!text.is_empty() && !text.contains(char::is_whitespace), "{name}");
        assert_ne!(text, two.text(name), "{name}");
    }
    for (name, start) in [
        ("operator_seed", "SO"),
        ("operator_public", "O"),
        ("system_account", "A"),
        ("system_account_seed", "SA"),
        ("system_user", "U"),
        ("system_user_seed", "SU"),
        ("account", "A"),
        ("account_seed", "SA"),
        ("account_signing_key", "A"),
        ("account_signing_seed", "SA"),
    ] {
        assert!(one.text(name).starts_with(start), "{name}");
    }
    let Value::Object(wrong) = json!({"max_connections": 0}) else {
        panic!("an object")
    };
    assert_eq!(m.generate_admin(&wrong).unwrap_err().kind, PortErrorKind::Invalid);
    assert_eq!(m.check_settings(&wrong).len(), 1);
}

/// Three servers, each with a resolver of its own: all must take a revocation, and one that was away catches up.
#[tokio::test]
async fn a_cluster_revokes_everywhere() {
    let server = Server::start(json!({"servers": 3}));
    server.stop();
    let routes: Vec<u16> = (0..3).map(|_| free_port()).collect();
    let clients: Vec<u16> = (0..3).map(|_| free_port()).collect();
    let all: Vec<String> = routes
        .iter()
        .map(|p| format!("\"nats://127.0.0.1:{p}\""))
        .collect();
    let start = |i: usize| {
        let admin = |member: &str| server.admin.text(member).to_owned();
        let file = server.dir.path().join(format!("n{i}.conf"));
        let text = format!(
            "server_name: n{i}\nlisten: \"127.0.0.1:{client}\"\noperator: {op}\nsystem_account: {sys}\n\
             resolver {{ type: full, dir: \"{root}/r{i}\", interval: \"1s\" }}\nresolver_preload {{ {sys}: {sys_jwt} }}\n\
             cluster {{ name: c, listen: \"127.0.0.1:{route}\", routes: [{all}] }}\n",
            client = clients[i],
            op = admin("operator_jwt"),
            sys = admin("system_account"),
            sys_jwt = admin("system_account_jwt"),
            root = server.dir.path().display(),
            route = routes[i],
            all = all.join(", "),
        );
        std::fs::write(&file, text).unwrap();
        let process = Process::start(Command::new("nats-server").arg("-c").arg(file), Signal::SIGKILL);
        for _ in 0..250 {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, clients[i])).is_ok() {
                return process;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("server {i} does not come up");
    };
    let mut nodes: Vec<Option<Process>> = (0..3).map(|i| Some(start(i))).collect();
    let target = Target {
        endpoint: endpoint("client", clients[0]),
        ..server.target()
    };
    let kit = Kit::new(&server);
    let m = &server.mechanism;
    settle("prepare", || m.prepare(&target)).await;
    let one = kit.generate(contract::grant("one", "owner"));
    let two = kit.generate(contract::grant("two", "owner"));
    let mut apps = Vec::new();
    for bound in [&one, &two] {
        settle("issue", || m.issue(&target, &bound.grant, &bound.user)).await;
        for port in &clients {
            apps.push(
                App::connect(*port, bound.user.secret.text("creds"), None)
                    .await
                    .unwrap(),
            );
        }
    }
    settle("revoke", || m.revoke(&target, &one.user.handle)).await;
    for (i, port) in clients.iter().enumerate() {
        apps[i].is_cut_soon().await;
        assert!(
            App::connect(*port, one.user.secret.text("creds"), None)
                .await
                .is_err()
        );
        assert!(!apps[3 + i].is_cut());
    }

    // One away: two of three are enough. Two away: one is not.
    nodes[2] = None;
    settle("revoke", || m.revoke(&target, &two.user.handle)).await;
    nodes[1] = None;
    let three = kit.generate(contract::grant("three", "owner"));
    let error = m.revoke(&target, &three.user.handle).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Transient, "{error:?}");
    nodes[2] = Some(start(2));
    let creds = two.user.secret.text("creds");
    let mut refused = false;
    for _ in 0..100 {
        refused = App::connect(clients[2], creds, None).await.is_err();
        if refused {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(refused, "the server that was away did not catch up");
}
