//! The rules of the comparison as tables. What it does to a world is in `tests/it/reconcile.rs`.

use super::finding::{Standing, of_client, of_secret, of_user, standing};
use super::*;
use crate::domain::binding::{Binding, BindingAttributes, BindingState};
use crate::domain::delivery::Delivery;
use crate::ports::FoundIdentity;
use std::collections::BTreeSet;

const BEGAN: Millis = 1000;

fn known(state: BindingState) -> KnownBinding {
    let bid = names::bid("cf", "one", "b");
    KnownBinding {
        binding: Binding {
            iid: names::iid("cf", "one"),
            platform: "cf".into(),
            binding_id: "b".into(),
            attributes: BindingAttributes::default(),
            requested: BindingAttributes::default(),
            state,
            handle: names::backend_user(&bid),
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
            bid,
        },
        busy: false,
    }
}

#[test]
fn what_a_row_proves() {
    use BindingState::{Creating, DeleteFailed, Deleting, Expired, Failed, Gone, Ready};
    for (state, expected) in [
        (Creating, Standing::Moving),
        (Failed, Standing::Ended),
        (Ready, Standing::Valid),
        (Deleting, Standing::Moving),
        (DeleteFailed, Standing::Moving),
        (Expired, Standing::Ended),
        (Gone, Standing::Ended),
    ] {
        assert_eq!(standing(Some(&known(state)), BEGAN), expected, "{state}");
        // At work, left over, or changed since: the broker sees to it, or the next comparison.
        let busy = KnownBinding {
            busy: true,
            ..known(state)
        };
        let mut left = known(state);
        left.binding.residue = true;
        let mut new = known(state);
        new.binding.updated_at = BEGAN;
        for known in [busy, left, new] {
            assert_eq!(standing(Some(&known), BEGAN), Standing::Moving, "{state}");
        }
    }
    assert_eq!(standing(None, BEGAN), Standing::Unknown);
    for (expires_at, expected) in [(BEGAN, Standing::Moving), (BEGAN + 1, Standing::Valid)] {
        let mut expiring = known(Ready);
        expiring.binding.expires_at = Some(expires_at);
        assert_eq!(
            standing(Some(&expiring), BEGAN),
            expected,
            "expired, and the sweep comes in a moment"
        );
    }
}

#[test]
fn clients_against_rows() {
    let client = |bid: Option<&str>, enabled: bool| FoundIdentity {
        client_id: "osb-b-x".into(),
        bid: bid.map(str::to_owned),
        enabled,
    };
    for (bid, enabled, standing, expected) in [
        (None, true, Standing::Unknown, Some(Kind::ClientStrange)),
        (None, false, Standing::Unknown, Some(Kind::ClientStrange)),
        (Some("x"), true, Standing::Unknown, Some(Kind::ClientUnknown)),
        (Some("x"), false, Standing::Unknown, Some(Kind::ClientUnknown)),
        (Some("x"), true, Standing::Ended, Some(Kind::ClientEnabled)),
        (Some("x"), false, Standing::Ended, Some(Kind::ClientEnded)),
        (Some("x"), true, Standing::Valid, None),
        (Some("x"), false, Standing::Valid, Some(Kind::ClientDisabled)),
        (Some("x"), true, Standing::Moving, None),
        (Some("x"), false, Standing::Moving, None),
    ] {
        assert_eq!(
            of_client(&client(bid, enabled), standing),
            expected,
            "{bid:?} {enabled} {standing:?}"
        );
    }
}

#[test]
fn secrets_against_rows() {
    for (in_place, standing, expected) in [
        (false, Standing::Unknown, Some(Kind::SecretUnknown)),
        (true, Standing::Ended, Some(Kind::SecretEnded)),
        (false, Standing::Ended, Some(Kind::SecretElsewhere)),
        (true, Standing::Valid, None),
        (false, Standing::Valid, Some(Kind::SecretElsewhere)),
        (true, Standing::Moving, None),
        (false, Standing::Moving, None),
    ] {
        assert_eq!(of_secret(in_place, standing), expected, "{in_place} {standing:?}");
    }
}

#[test]
fn users_against_rows() {
    let known = known(BindingState::Ready);
    let (iid, own) = (known.binding.iid.clone(), known.binding.handle.clone());
    let second = names::second_user(&known.binding.bid);
    let row = Some(&known);
    for (user, on, row, welcome, standing, expected) in [
        (&own, iid.as_str(), row, Some(true), Standing::Valid, None),
        (&own, &iid, row, Some(true), Standing::Moving, None),
        (
            &own,
            &iid,
            row,
            Some(true),
            Standing::Ended,
            Some(Kind::UserEnded),
        ),
        (&own, &iid, None, None, Standing::Unknown, Some(Kind::UserUnknown)),
        (
            &own,
            "elsewhere",
            row,
            Some(true),
            Standing::Valid,
            Some(Kind::UserUnknown),
        ),
        (&second, &iid, row, None, Standing::Valid, Some(Kind::UserUnknown)),
        (&second, &iid, row, Some(true), Standing::Valid, None),
        (
            &second,
            &iid,
            row,
            Some(false),
            Standing::Valid,
            Some(Kind::UserEnded),
        ),
        (&second, &iid, row, Some(false), Standing::Moving, None),
        (&second, &iid, row, None, Standing::Moving, None),
        (
            &"somebody".to_owned(),
            &iid,
            row,
            None,
            Standing::Valid,
            Some(Kind::UserUnknown),
        ),
    ] {
        assert_eq!(
            of_user(user, on, row, welcome, standing),
            expected,
            "{user} {standing:?}"
        );
    }
}

#[test]
fn every_kind_has_its_own_word_and_advice() {
    let words: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(words.len(), Kind::ALL.len());
    for kind in Kind::ALL {
        assert!(!kind.advice().is_empty());
        let mended = [Done::Repaired, Done::Removed, Done::Begun];
        assert!(mended.iter().all(Done::is_mended));
        assert!(!Done::Told(kind.advice()).is_mended() && !Done::Failed("x".into()).is_mended());
    }
}
