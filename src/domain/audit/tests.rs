//! Records, their chain, and every way to meddle with it, as tables.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::domain::binding::{BindingAttributes, BindingState};
use crate::domain::delivery::Delivery;
use serde_json::json;

fn caller() -> Caller {
    Caller {
        platform: "cf".into(),
        originating: Some(("cloudfoundry".into(), json!({"user_id": "u-1"}))),
        request_id: Some("r-1".into()),
    }
}

fn event(n: i64) -> Event {
    Event::asked(&caller(), Action::Bind, "one", &format!("b{n}"), 1000 + n).by(&format!("op{n}"))
}

fn chain(length: i64) -> (Vec<Record>, Head) {
    let mut head = Head::start();
    let records = (1..=length).map(|n| head.append(event(n))).collect();
    (records, head)
}

fn check(records: &[Record], head: &Head) -> Result<(), Broken> {
    let mut at = Head::start();
    for record in records {
        at.follow(record)?;
    }
    at.ends_at(head)
}

/// The form for ever: whoever checks a chain without this program relies on it.
#[test]
fn the_canonical_text_and_its_hash_never_change() {
    let mut head = Head::start();
    let record = head.append(Event {
        at: 1_800_000_000_000,
        action: "rotate".into(),
        outcome: "accepted".into(),
        cause: "platform".into(),
        platform: "cf".into(),
        origin: Some("cloudfoundry {\"user_id\":\"ü\"}".into()),
        request_id: None,
        instance: "i".into(),
        binding: String::new(),
        instance_id: "a:b,".into(),
        binding_id: "x".into(),
        operation: Some("op".into()),
        predecessor: Some("p".into()),
    });
    let zeros = "0".repeat(64);
    assert_eq!(
        record.canonical(),
        format!(
            "chandler-audit-1,64:{zeros},1:1,13:1800000000000,6:rotate,8:accepted,8:platform,2:cf,29:cloudfoundry {{\"user_id\":\"ü\"}},~,1:i,0:,4:a:b,,1:x,2:op,1:p,"
        )
    );
    assert_eq!(
        record.hash,
        "a33b6e81f315632c378f4068926fcec84f4b49e153d1534dce196082212ec43c"
    );
    assert_eq!(
        head,
        Head {
            seq: 1,
            hash: record.hash
        }
    );
}

#[test]
fn no_two_different_records_have_one_text() {
    let base = event(1);
    let mut texts = std::collections::BTreeSet::new();
    let variants = [
        base.clone(),
        Event {
            platform: "cfo".into(),
            origin: None,
            ..base.clone()
        },
        Event {
            platform: "cf".into(),
            origin: None,
            ..base.clone()
        },
        Event {
            platform: "cf".into(),
            origin: Some(String::new()),
            ..base.clone()
        },
        Event {
            instance_id: "on".into(),
            binding_id: "eb1".into(),
            ..base.clone()
        },
        Event {
            instance_id: "one".into(),
            binding_id: "b".into(),
            ..base.clone()
        },
        Event {
            request_id: Some("r-1,2:ab".into()),
            ..base.clone()
        },
        Event {
            operation: None,
            predecessor: Some("op1".into()),
            ..base.clone()
        },
        Event {
            at: 1,
            ..base.clone()
        },
        Event {
            outcome: "failed".into(),
            ..base.clone()
        },
        Event {
            cause: "expiry".into(),
            ..base.clone()
        },
        Event {
            binding: "b".into(),
            ..base.clone()
        },
        Event {
            instance: "i".into(),
            ..base
        },
    ];
    let count = variants.len();
    for event in variants {
        texts.insert(Head::start().append(event).hash);
    }
    assert_eq!(texts.len(), count);
}

#[test]
fn an_untouched_chain_holds() {
    for length in [0, 1, 2, 50] {
        let (records, head) = chain(length);
        assert_eq!(check(&records, &head), Ok(()));
    }
}

type Tamper = fn(&mut Vec<Record>);

#[test]
fn the_first_broken_link_is_told() {
    let (good, head) = chain(6);
    let cases: [(&str, Tamper, Broken); 12] = [
        (
            "a member changed",
            |r| r[2].event.platform = "k8s".into(),
            Broken::Changed { seq: 3 },
        ),
        (
            "the time changed",
            |r| r[0].event.at += 1,
            Broken::Changed { seq: 1 },
        ),
        (
            "a member taken away",
            |r| r[5].event.origin = None,
            Broken::Changed { seq: 6 },
        ),
        (
            "a hash changed",
            |r| r[3].hash = "f".repeat(64),
            Broken::Changed { seq: 4 },
        ),
        (
            "changed, and its hash made anew",
            |r| {
                r[2].event.outcome = "failed".into();
                r[2].hash = sha256(&r[2].canonical());
            },
            Broken::Unlinked { seq: 4 },
        ),
        (
            "the last changed, and its hash made anew",
            |r| {
                r[5].event.outcome = "failed".into();
                r[5].hash = sha256(&r[5].canonical());
            },
            Broken::OtherEnd { seq: 6, expected: 6 },
        ),
        (
            "one left out",
            |r| drop(r.remove(3)),
            Broken::Missing { first: 4, last: 4 },
        ),
        (
            "the first left out",
            |r| drop(r.drain(0..2)),
            Broken::Missing { first: 1, last: 2 },
        ),
        (
            "the end cut off",
            |r| r.truncate(4),
            Broken::Missing { first: 5, last: 6 },
        ),
        (
            "two exchanged",
            |r| r.swap(2, 3),
            Broken::Missing { first: 3, last: 3 },
        ),
        (
            "two exchanged with their numbers",
            |r| {
                r.swap(2, 3);
                (r[2].seq, r[3].seq) = (3, 4);
            },
            Broken::Unlinked { seq: 3 },
        ),
        (
            "one put in twice",
            |r| r.insert(3, r[2].clone()),
            Broken::Misplaced { seq: 3, after: 3 },
        ),
    ];
    for (what, tamper, broken) in cases {
        let mut records = good.clone();
        tamper(&mut records);
        assert_eq!(check(&records, &head), Err(broken), "{what}");
    }
}

#[test]
fn one_put_in_is_told_however_it_is_numbered() {
    let (good, head) = chain(4);
    let mut records = good.clone();
    let mut forged = Head {
        seq: 1,
        hash: good[0].hash.clone(),
    };
    records.insert(1, forged.append(event(99)));
    assert_eq!(
        check(&records, &head),
        Err(Broken::Misplaced { seq: 2, after: 2 })
    );
    for (n, record) in records.iter_mut().enumerate() {
        record.seq = i64::try_from(n).unwrap() + 1;
    }
    assert_eq!(check(&records, &head), Err(Broken::Unlinked { seq: 3 }));
    // Behind the end it fits, and only the head tells.
    let mut end = head.clone();
    let mut records = good;
    records.push(end.append(event(99)));
    assert_eq!(
        check(&records, &head),
        Err(Broken::OtherEnd { seq: 5, expected: 4 })
    );
}

fn lines(records: &[Record], head: &Head) -> Vec<String> {
    let mut lines: Vec<_> = records
        .iter()
        .map(|r| serde_json::to_string(r).unwrap())
        .collect();
    lines.push(serde_json::to_string(&HeadLine { head: head.clone() }).unwrap());
    lines
}

fn check_file(after: Option<Head>, lines: &[String]) -> Result<(Head, Head), Broken> {
    let mut file = FileCheck::new(after);
    for line in lines {
        file.line(line)?;
    }
    file.end()
}

#[test]
fn exported_files_are_followed() {
    let (records, head) = chain(6);
    let whole = lines(&records, &head);
    assert_eq!(check_file(None, &whole), Ok((Head::start(), head.clone())));
    assert_eq!(
        check_file(Some(Head::start()), &whole),
        Ok((Head::start(), head.clone()))
    );

    let middle = Head {
        seq: 3,
        hash: records[2].hash.clone(),
    };
    let first = lines(&records[..3], &middle);
    let second = lines(&records[3..], &head);
    assert_eq!(check_file(None, &second), Ok((middle.clone(), head.clone())));
    assert_eq!(
        check_file(Some(middle.clone()), &second),
        Ok((middle.clone(), head.clone()))
    );
    assert_eq!(
        check_file(None, &[first.clone(), second.clone()].concat()),
        Ok((Head::start(), head.clone()))
    );
    assert_eq!(
        check_file(None, &second[3..]),
        Ok((head.clone(), head.clone())),
        "nothing new"
    );

    for (what, after, file, broken) in [
        ("the head is gone", None, whole[..6].to_vec(), Broken::NoHead),
        ("nothing is left", None, Vec::new(), Broken::NoHead),
        (
            "the events before the head are gone",
            None,
            [&whole[..4], &whole[6..]].concat(),
            Broken::Missing { first: 5, last: 6 },
        ),
        (
            "a file between is missing",
            Some(Head::start()),
            second.clone(),
            Broken::Missing { first: 1, last: 3 },
        ),
        (
            "another chain's file",
            Some(Head {
                seq: 3,
                hash: "1".repeat(64),
            }),
            second.clone(),
            Broken::Unlinked { seq: 4 },
        ),
        (
            "a changed line",
            None,
            whole.iter().map(|l| l.replace("\"b5\"", "\"b6\"")).collect(),
            Broken::Changed { seq: 5 },
        ),
    ] {
        assert_eq!(check_file(after, &file), Err(broken), "{what}");
    }
    for line in ["", "{}", "null", "{\"seq\":1}", "{\"head\":{}}"] {
        let mut file = whole.clone();
        file[1] = line.into();
        assert!(
            matches!(check_file(None, &file), Err(Broken::Unreadable { line: 2, .. })),
            "{line}"
        );
    }
    let more = whole[0].replacen("{\"at\"", "{\"more\":1,\"at\"", 1);
    assert!(matches!(
        check_file(None, &[more]),
        Err(Broken::Unreadable { line: 1, .. })
    ));
}

#[test]
fn heads_are_read_as_they_are_written() {
    let (_, head) = chain(3);
    assert_eq!(Head::parse(&head.to_string()), Some(head.clone()));
    assert_eq!(Head::parse(&format!(" {head}\n")), Some(head));
    for bad in ["", "3", "3:", "x:00", "-1:00", "3:zz", ":"] {
        assert_eq!(Head::parse(bad), None, "{bad}");
    }
    assert_eq!(Head::parse(&format!("-1:{}", "0".repeat(64))), None);
    assert_eq!(Head::parse(&format!("1:{}", "A".repeat(64))), None);
}

#[test]
fn who_asked_is_recorded_and_bounded() {
    let small = Event::asked(&caller(), Action::Unbind, "one", "b", 5);
    assert_eq!(
        small.origin.as_deref(),
        Some("cloudfoundry {\"user_id\":\"u-1\"}")
    );
    assert_eq!(
        (small.outcome.as_str(), small.cause.as_str()),
        ("accepted", "platform")
    );
    assert_eq!(small.binding, names::bid("cf", "one", "b"));
    let huge = Caller {
        originating: Some((
            "w".repeat(9000),
            json!({"username": "ada", "uid": "x".repeat(300), "groups": ["g".repeat(9000)]}),
        )),
        ..caller()
    };
    let origin = Event::asked(&huge, Action::Read, "one", "b", 5).origin.unwrap();
    assert!(origin.len() < 500, "{}", origin.len());
    assert!(
        origin.contains("\"username\":\"ada\"") && origin.contains("\"sha256\":\""),
        "{origin}"
    );
    let odd = Event::asked(&caller(), Action::Read, "a\0b", "b", 5);
    assert_eq!(
        (odd.instance_id.as_str(), odd.outcome.as_str()),
        ("a\u{fffd}b", "succeeded")
    );
}

#[test]
fn what_the_broker_orders_itself_has_no_caller() {
    let binding = Binding {
        bid: "bid".into(),
        iid: "iid".into(),
        platform: "cf".into(),
        binding_id: "b".into(),
        attributes: BindingAttributes::default(),
        requested: BindingAttributes::default(),
        state: BindingState::Ready,
        handle: "b_bid".into(),
        residue: false,
        delivery: Delivery::Inline,
        generation: 0,
        rotations: 0,
        service_account: None,
        secret_namespace: None,
        expires_at: None,
        renew_before: None,
        created_at: 1,
        updated_at: 1,
    };
    let event = Event::ordered(Action::Revoke, Cause::Expiry, &binding, "one", 7).by("op");
    assert_eq!(
        (event.action.as_str(), event.cause.as_str()),
        ("revoke", "expiry")
    );
    assert_eq!((event.origin, event.request_id), (None, None));
    assert_eq!((event.binding.as_str(), event.instance.as_str()), ("bid", "iid"));
    let all = Event::asked_for_all(&caller(), "one", 8).by("op");
    assert_eq!((all.binding.as_str(), all.cause.as_str()), ("", "deprovision"));
    assert!(all.origin.is_some());
    let rotate = Event::asked(&caller(), Action::Bind, "one", "b", 5).after(Some("old"));
    assert_eq!(
        (rotate.action.as_str(), rotate.predecessor.as_deref()),
        ("rotate", Some("old"))
    );
    let ended = rotate.clone().ended("failed", 9);
    assert_eq!(
        (ended.outcome.as_str(), ended.at, &ended.action),
        ("failed", 9, &rotate.action)
    );
}
