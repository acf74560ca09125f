//! Names the outside world sees, all derived from the platform's own ids (design §7).
//!
//! Platform ids are opaque strings: they may hold anything, and two platforms may use the same
//! one. They never reach a path, a policy, SQL or a server raw; what does is a hash of them, so
//! that a repeated step finds its own earlier work and no id can be crafted to mean another.

use sha2::{Digest, Sha256};

/// Length of an [`iid`] or [`bid`]: 26 base32 characters carry 130 bits.
pub const LEN: usize = 26;

fn derive(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            hash.update([0]);
        }
        hash.update(part.as_bytes());
    }
    let mut name = data_encoding::BASE32_NOPAD
        .encode(&hash.finalize())
        .to_ascii_lowercase();
    name.truncate(LEN);
    name
}

/// The broker's name for an instance: 26 characters of `a-z2-7`.
///
/// An id holding NUL could imitate the separator; `http` refuses such ids with 400.
pub fn iid(platform: &str, instance_id: &str) -> String {
    derive(&[platform, instance_id])
}

/// The broker's name for a binding: 26 characters of `a-z2-7`.
pub fn bid(platform: &str, instance_id: &str, binding_id: &str) -> String {
    derive(&[platform, instance_id, binding_id])
}

/// The user a binding gets on the backend: `b_<bid>`, 28 characters, valid everywhere we make users.
pub fn backend_user(bid: &str) -> String {
    format!("b_{bid}")
}

/// The other name its user may have: a rotation in place takes them by turns.
pub fn second_user(bid: &str) -> String {
    format!("b_{bid}_r")
}

/// The binding a backend user belongs to; none for a name that the broker never gives.
pub fn bid_of_user(user: &str) -> Option<&str> {
    let bid = user.strip_prefix("b_")?;
    Some(bid.strip_suffix("_r").unwrap_or(bid)).filter(|bid| is_name(bid))
}

/// What every [`client_id`] starts with.
pub const CLIENT_PREFIX: &str = "osb-b-";

/// The client a binding gets at the identity provider: `osb-b-<bid>`.
pub fn client_id(bid: &str) -> String {
    format!("{CLIENT_PREFIX}{bid}")
}

/// The binding a client belongs to; none for a name that the broker never gives.
///
/// The vault's policy is filled in with this name: one with `*` or `/` in it would open other bindings' secrets.
pub fn bid_of_client(client_id: &str) -> Option<&str> {
    client_id.strip_prefix(CLIENT_PREFIX).filter(|bid| is_name(bid))
}

/// Whether `name` has the form of an [`iid`] or [`bid`].
pub fn is_name(name: &str) -> bool {
    name.len() == LEN
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_by_platform_and_part_boundaries() {
        let names = [
            iid("cf", "a"),
            iid("k8s", "a"),
            iid("cf", "b"),
            bid("cf", "a", "b"),
            bid("cf", "ab", ""),
            bid("cf", "", "ab"),
        ];
        for (i, a) in names.iter().enumerate() {
            assert!(is_name(a), "{a}");
            for b in &names[i + 1..] {
                assert_ne!(a, b);
            }
        }
        assert_eq!(backend_user(&names[3]).len(), 28);
        for user in [backend_user(&names[3]), second_user(&names[3])] {
            assert_eq!(bid_of_user(&user), Some(names[3].as_str()));
        }
        let twice = format!("{}_r", second_user(&names[3]));
        for strange in ["b_", "b_x", "b__r", "postgres", &names[3], &twice] {
            assert_eq!(bid_of_user(strange), None);
        }
        assert_eq!(bid_of_client(&client_id(&names[3])), Some(names[3].as_str()));
        for strange in ["osb-b-*", "osb-b-", "osb-b-../../x", "other"] {
            assert_eq!(bid_of_client(strange), None);
        }
    }
}
