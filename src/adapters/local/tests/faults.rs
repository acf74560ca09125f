//! Crashes, races, planted links, half-made things: afterwards nothing is left over and nothing is missing.

use super::super::procfs::Leader;
use super::*;

#[tokio::test]
async fn an_init_that_fails_leaves_nothing_and_says_why() {
    let ground = Ground::new();
    let broker = ground.broker();
    let i = instance(1, "postgres");
    let placement = broker.place(&i, &postgres_offering()).await.unwrap();
    let mut spec = postgres(&placement, 20);
    let init = spec.init.as_mut().unwrap();
    init.command = vec![
        "/bin/sh".into(),
        "-c".into(),
        "touch .init/x; cat pw >&2; echo 'error: no room for Pg123Secret' >&2; exit 3".into(),
    ];
    let error = broker.apply(&i, &desired(spec.clone())).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Invalid);
    assert!(
        error.message.contains("exit code 3") && error.message.contains("no room for ***"),
        "{error}"
    );
    assert!(!error.message.contains("Pg123"), "{error}");
    // Killed half-way by something else: may pass by itself.
    spec.init.as_mut().unwrap().command[2] = "mkdir -p .init/deep; kill -9 $$".into();
    let error = broker.apply(&i, &desired(spec)).await.unwrap_err();
    assert_eq!(error.kind, PortErrorKind::Transient);
    for name in [".init", "data", "pw"] {
        assert!(!ground.home(&i).join(name).exists(), "{name}");
    }
    assert!(ground.family(&i).is_empty());
    let want = desired(postgres(&placement, 20));
    assert!(matches!(
        until_settled(&broker, &i, &want).await,
        Observation::Ready(_)
    ));
    until_gone(&broker, &i).await;
}

#[tokio::test]
async fn a_crash_loop_fails_with_a_line_a_person_can_use() {
    let ground = Ground::new();
    let broker = ground.broker();
    let i = instance(1, "redis");
    let placement = broker.place(&i, &redis_offering()).await.unwrap();
    let bad = desired(redis(&placement, "no-such-directive Topsecret99"));
    let Observation::Failed(why) = until_settled(&broker, &i, &bad).await else {
        panic!()
    };
    assert!(
        why.contains("3 times in a row (exit code 1)") && why.contains("no-such-directive"),
        "{why}"
    );
    assert!(
        !why.contains("Topsecret99") && !why.contains(ground.root().to_str().unwrap()),
        "{why}"
    );
    assert!(why.len() < 700 && !why.chars().any(char::is_control), "{why}");
    // Applying the same again waits out the pause; after it, there is another try.
    broker.apply(&i, &bad).await.unwrap();
    assert!(matches!(
        broker.observe(&i, &bad).await.unwrap(),
        Observation::Failed(_)
    ));
    let mut run = ground.memory().run(&i.iid);
    assert_eq!(run.crashes, 3);
    run.exited = 0;
    ground.memory().keep_run(&i.iid, &run).unwrap();
    assert!(matches!(
        broker.observe(&i, &bad).await.unwrap(),
        Observation::Absent(_)
    ));
    // A corrected description is tried at once.
    run.exited = procfs::uptime_ms();
    ground.memory().keep_run(&i.iid, &run).unwrap();
    let good = desired(redis(&placement, ""));
    broker.apply(&i, &good).await.unwrap();
    assert!(matches!(
        until_settled(&broker, &i, &good).await,
        Observation::Ready(_)
    ));
    until_gone(&broker, &i).await;
}

/// A service that is a shell script run by `nobody`.
fn script(placement: &Map<String, Value>, text: &str) -> ProcessSpec {
    let _ = placement;
    ProcessSpec {
        command: vec!["/bin/sh".into(), "-c".into(), text.into()],
        stop: StopSpec {
            signal: "SIGTERM".into(),
            grace: 1,
        },
        ready: ReadySpec { tcp: "client".into() },
        ..ProcessSpec::default()
    }
}

fn script_offering() -> Offering {
    offering("script", "nobody", &[("sh", "/bin/sh")], &["client"])
}

/// Waits until an instance's processes are so many at once.
async fn until_many(ground: &Ground, i: &InstanceRef, many: usize) {
    for _ in 0..1000 {
        if ground.family(i).len() >= many {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{many} processes in 10 s");
}

#[tokio::test]
async fn what_will_not_stop_is_killed_with_its_children_after_the_grace() {
    let ground = Ground::new();
    let broker = ground.broker();
    let i = instance(1, "script");
    let placement = broker.place(&i, &script_offering()).await.unwrap();
    let stubborn = desired(script(
        &placement,
        "trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & while :; do sleep 1; done",
    ));
    broker.apply(&i, &stubborn).await.unwrap();
    assert!(matches!(
        broker.observe(&i, &stubborn).await.unwrap(),
        Observation::Progressing(_)
    ));
    // Both loops run, so both have said what they do not listen to.
    until_many(&ground, &i, 4).await;
    let start = procfs::uptime_ms();
    assert!(matches!(
        broker.remove(&i, Volumes::Delete).await.unwrap(),
        Removal::StillGoing(_)
    ));
    assert!(
        procfs::uptime_ms() - start < 900,
        "the caller is not held for the grace"
    );
    // While it goes, nothing is started, placed or reported as ready.
    assert_eq!(
        broker.apply(&i, &stubborn).await.unwrap_err().kind,
        PortErrorKind::Gone
    );
    assert_eq!(
        broker.place(&i, &script_offering()).await.unwrap_err().kind,
        PortErrorKind::Gone
    );
    assert!(matches!(
        broker.observe(&i, &stubborn).await.unwrap(),
        Observation::Progressing(_)
    ));
    assert!(ground.home(&i).exists());
    until_gone(&ground.broker(), &i).await;
    assert!(ground.family(&i).is_empty());
    assert_eq!(ground.left(), Vec::<String>::new());
}

#[tokio::test]
async fn a_restart_escalates_too() {
    let ground = Ground::new();
    let broker = ground.broker();
    let i = instance(1, "script");
    let placement = broker.place(&i, &script_offering()).await.unwrap();
    let stubborn = desired(script(&placement, "trap '' TERM; while :; do sleep 1; done"));
    broker.apply(&i, &stubborn).await.unwrap();
    until_many(&ground, &i, 2).await;
    let old = ground.leader(&i);
    let changed = desired(script(&placement, "while :; do sleep 2; done"));
    broker.apply(&i, &changed).await.unwrap();
    assert!(matches!(
        broker.observe(&i, &changed).await.unwrap(),
        Observation::Progressing(_)
    ));
    let mut new = old;
    for _ in 0..100 {
        if let Observation::Absent(_) = broker.observe(&i, &changed).await.unwrap() {
            broker.apply(&i, &changed).await.unwrap();
            new = ground.leader(&i);
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert_ne!(old, new);
    assert_eq!(ground.memory().run(&i.iid).crashes, 0);
    until_gone(&broker, &i).await;
}

#[tokio::test]
async fn a_dropped_apply_still_finishes_before_a_remove() {
    let ground = Ground::new();
    let broker = ground.broker();
    let i = instance(1, "script");
    let placement = broker.place(&i, &script_offering()).await.unwrap();
    let mut spec = script(&placement, "while :; do sleep 1; done");
    spec.init = Some(InitSpec {
        creates: "data".into(),
        command: vec![
            "/bin/sh".into(),
            "-c".into(),
            "sleep 0.6; touch .init/made".into(),
        ],
    });
    let want = desired(spec);
    let cut = tokio::time::timeout(Duration::from_millis(200), broker.apply(&i, &want)).await;
    assert!(cut.is_err());
    // Init is still at work, without its caller: the lock is held and everything waits for it.
    assert!(matches!(
        broker.remove(&i, Volumes::Delete).await.unwrap(),
        Removal::Gone | Removal::StillGoing(_)
    ));
    until_gone(&broker, &i).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(ground.family(&i).is_empty());
    assert_eq!(ground.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_places_and_applies() {
    let ground = Ground::new();
    let brokers = [Arc::new(ground.broker()), Arc::new(ground.broker())];
    let mut tasks = Vec::new();
    for n in 0..16 {
        let broker = Arc::clone(&brokers[n % 2]);
        tasks.push(tokio::spawn(async move {
            port(
                &broker
                    .place(&instance(n, "redis"), &redis_offering())
                    .await
                    .unwrap(),
                "client",
            )
        }));
    }
    let mut got = BTreeSet::new();
    for task in tasks {
        got.insert(task.await.unwrap());
    }
    assert_eq!(got.len(), 16);

    // Two brokers apply one instance at the same time, over and over: one server.
    let i = instance(0, "redis");
    let placement = brokers[0].place(&i, &redis_offering()).await.unwrap();
    let want = desired(redis(&placement, ""));
    let tasks: Vec<_> = (0..12)
        .map(|n| {
            let (broker, i, want) = (Arc::clone(&brokers[n % 2]), i.clone(), want.clone());
            tokio::spawn(async move { broker.apply(&i, &want).await.unwrap() })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(ground.family(&i).len(), 1);
    for n in 0..16 {
        until_gone(&brokers[(n + 1) % 2], &instance(n, "redis")).await;
    }
    assert_eq!(ground.left(), Vec::<String>::new());
    assert_eq!(brokers[0].list().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn names_and_paths_cannot_reach_outside() {
    let ground = Ground::new();
    let broker = ground.broker();
    for bad in [
        "",
        "..",
        "../../etc",
        "a/b",
        "A",
        "x\0",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ] {
        let i = InstanceRef {
            iid: bad.into(),
            ..instance(1, "redis")
        };
        assert_eq!(
            broker.place(&i, &redis_offering()).await.unwrap_err().kind,
            PortErrorKind::Invalid
        );
        assert_eq!(
            broker.remove(&i, Volumes::Delete).await.unwrap_err().kind,
            PortErrorKind::Invalid
        );
    }
    let i = instance(1, "redis");
    let placement = broker.place(&i, &redis_offering()).await.unwrap();
    let good = redis(&placement, "");
    for bad in ["/etc/x", "../x", "a/../../x", "", "log/x", "a\0b"] {
        let mut spec = good.clone();
        spec.files[0].path = bad.into();
        assert_eq!(
            broker.apply(&i, &desired(spec)).await.unwrap_err().kind,
            PortErrorKind::Invalid,
            "{bad:?}"
        );
        let mut spec = good.clone();
        spec.init = Some(InitSpec {
            creates: bad.into(),
            command: vec!["/bin/true".into()],
        });
        assert_eq!(
            broker.apply(&i, &desired(spec)).await.unwrap_err().kind,
            PortErrorKind::Invalid,
            "{bad:?}"
        );
    }
    let mut spec = good.clone();
    spec.command[0] = "redis-server".into();
    assert_eq!(
        broker.apply(&i, &desired(spec)).await.unwrap_err().kind,
        PortErrorKind::Invalid
    );
    let mut spec = good.clone();
    spec.stop.signal = "SIGSTOP".into();
    assert_eq!(
        broker.apply(&i, &desired(spec)).await.unwrap_err().kind,
        PortErrorKind::Invalid
    );

    // Links planted where files and directories belong, and inside what is erased.
    let outside = ground.tmp.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("victim"), "untouched").unwrap();
    symlink(&outside, ground.home(&i).join("conf")).unwrap();
    symlink(outside.join("victim"), ground.home(&i).join("redis.conf")).unwrap();
    symlink(&outside, ground.home(&i).join(".init")).unwrap();
    let mut spec = good.clone();
    spec.files.push(file("conf/victim", "evil".into()));
    assert_eq!(
        broker.apply(&i, &desired(spec)).await.unwrap_err().kind,
        PortErrorKind::Denied
    );
    assert!(matches!(
        until_settled(&broker, &i, &desired(good)).await,
        Observation::Ready(_)
    ));
    until_gone(&broker, &i).await;
    assert_eq!(
        std::fs::read_to_string(outside.join("victim")).unwrap(),
        "untouched"
    );

    // The root of all: not ours alone, not used.
    let open = ground.tmp.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(LocalProvisioner::new(LocalSettings::new(open)).is_err());
    assert!(LocalProvisioner::new(LocalSettings::new("relative")).is_err());
}

#[tokio::test]
async fn half_made_and_half_erased_things_are_listed_and_removed() {
    let ground = Ground::new();
    let broker = ground.broker();
    let [made, trashed, reserved, running] = [1, 2, 3, 4].map(|n| instance(n, "redis"));
    std::fs::create_dir(ground.home(&made)).unwrap();
    let trash = ground.root().join(format!(".trash-{}", trashed.iid));
    std::fs::create_dir_all(trash.join("deep/er")).unwrap();
    symlink(&reserved.iid, ground.root().join(".ports/20001")).unwrap();
    std::fs::create_dir(ground.home(&running)).unwrap();
    let child = Command::new("/bin/sleep")
        .arg("60")
        .current_dir(ground.home(&running))
        .stdin(Stdio::null())
        .spawn();
    let mut child = child.unwrap();
    std::fs::remove_dir(ground.home(&running)).unwrap();
    let all: BTreeSet<String> = [&made, &trashed, &reserved, &running]
        .map(|i| i.iid.clone())
        .into();
    assert_eq!(
        broker.list().await.unwrap().into_iter().collect::<BTreeSet<_>>(),
        all
    );
    let reaper = std::thread::spawn(move || child.wait());
    for i in [&made, &trashed, &reserved, &running] {
        until_gone(&broker, i).await;
    }
    reaper.join().unwrap().unwrap();
    assert_eq!(ground.left(), Vec::<String>::new());

    std::fs::create_dir_all(trash.join("deep")).unwrap();
    drop(ground.broker());
    assert!(!trash.exists());
}

#[tokio::test]
async fn a_pid_used_again_is_not_our_server() {
    let ground = Ground::new();
    let broker = ground.broker();
    let i = instance(1, "redis");
    let placement = broker.place(&i, &redis_offering()).await.unwrap();
    let want = desired(redis(&placement, ""));
    let mut stranger = Command::new("/bin/sleep")
        .arg("60")
        .current_dir("/")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let pid = i32::try_from(stranger.id()).unwrap();
    let mut run = ground.memory().run(&i.iid);
    run.phase = Phase::Running(Leader { pid, start: 1 });
    ground.memory().keep_run(&i.iid, &run).unwrap();
    assert!(matches!(
        broker.observe(&i, &want).await.unwrap(),
        Observation::Absent(_)
    ));
    assert!(matches!(
        until_settled(&broker, &i, &want).await,
        Observation::Ready(_)
    ));
    until_gone(&broker, &i).await;
    assert!(stranger.try_wait().unwrap().is_none());
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

/// Not a test of its own: the broker that [`a_broker_killed_at_any_moment_leaves_one_whole_server`] kills.
#[tokio::test]
#[ignore = "runs as a process of its own, started by another test"]
#[expect(
    clippy::disallowed_methods,
    reason = "how the other test tells it where to work"
)]
async fn broker_to_be_killed() {
    let root = PathBuf::from(std::env::var("CHANDLER_TEST_ROOT").unwrap());
    let broker = LocalProvisioner::new(LocalSettings::new(&root)).unwrap();
    let i = instance(1, "postgres");
    let placement = broker.place(&i, &postgres_offering()).await.unwrap();
    until_settled(&broker, &i, &desired(postgres(&placement, 20))).await;
    std::fs::write(settled(&root), "").unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
}

/// The file, beside the instances, by which the broker that is killed last says that it was done.
fn settled(root: &Path) -> PathBuf {
    root.with_extension("settled")
}

#[tokio::test]
async fn a_broker_killed_at_any_moment_leaves_one_whole_server() {
    let ground = Ground::new();
    let broker = ground.broker();
    let i = instance(1, "postgres");
    let placement = broker.place(&i, &postgres_offering()).await.unwrap();
    let want = desired(postgres(&placement, 20));
    drop(broker);
    // The last one is killed when it is done, however long that takes here.
    for delay in [
        Some(20),
        Some(60),
        Some(150),
        Some(300),
        Some(450),
        Some(600),
        Some(900),
        Some(1300),
        None,
    ] {
        let _ = std::fs::remove_file(settled(&ground.root()));
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--ignored",
                "adapters::local::tests::faults::broker_to_be_killed",
            ])
            .env("CHANDLER_TEST_ROOT", ground.root())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        match delay {
            Some(delay) => tokio::time::sleep(Duration::from_millis(delay)).await,
            None => {
                for _ in 0..1200 {
                    if settled(&ground.root()).exists() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        victim.kill().unwrap();
        victim.wait().unwrap();
    }
    std::fs::remove_file(settled(&ground.root())).unwrap();
    let before = ground.family(&i);
    let broker = ground.broker();
    assert!(matches!(
        until_settled(&broker, &i, &want).await,
        Observation::Ready(_)
    ));
    assert_eq!(sql(port(&placement, "client"), "select 1"), "1");
    let after = ground.family(&i);
    assert_eq!(procfs::roots(&after).len(), 1);
    // The last one had time to finish: what it started outlived it and was taken over, not replaced.
    assert_eq!(procfs::roots(&before)[0].pid, procfs::roots(&after)[0].pid);
    assert!(!ground.home(&i).join(".init").exists());
    until_gone(&broker, &i).await;
    assert!(ground.family(&i).is_empty());
    assert_eq!(ground.left(), Vec::<String>::new());
}
