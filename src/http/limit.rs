//! A bound on wrong passwords per client address, so that guessing is slow and cheap to refuse.
//!
//! One token bucket an address; memory is bounded whatever addresses come. An attempt takes a token
//! before the password is checked and gets it back when it was right, so parallel guesses cannot
//! slip past.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Addresses remembered at once; beyond that the rest share one bucket.
const MAX_ADDRESSES: usize = 10_000;
/// How often buckets that are full again are looked for, at most.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// A client address as far as it is told apart: one host of IPv4, one /64 of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    V4([u8; 4]),
    V6([u16; 4]),
    /// Unknown addresses, and all that do not fit any more.
    Rest,
}

impl Key {
    fn of(address: Option<IpAddr>) -> Self {
        match address.map(|a| a.to_canonical()) {
            Some(IpAddr::V4(v4)) => Self::V4(v4.octets()),
            Some(IpAddr::V6(v6)) => {
                let [a, b, c, d, ..] = v6.segments();
                Self::V6([a, b, c, d])
            }
            None => Self::Rest,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// The buckets in use, and when full ones were last looked for.
#[derive(Debug, Default)]
struct Buckets {
    of: HashMap<Key, Bucket>,
    swept: Option<Instant>,
}

/// Counts wrong passwords per client address.
#[derive(Debug)]
pub(super) struct FailureLimit {
    per_minute: u32,
    buckets: Mutex<Buckets>,
}

impl FailureLimit {
    /// Allows so many wrong passwords a minute and address; 0 switches the bound off.
    pub(super) fn new(per_minute: u32) -> Self {
        Self {
            per_minute,
            buckets: Mutex::default(),
        }
    }

    /// Takes a token. Errors: the seconds after which there is one again.
    pub(super) fn take(&self, address: Option<IpAddr>, now: Instant) -> Result<(), u32> {
        if self.per_minute == 0 {
            return Ok(());
        }
        let capacity = f64::from(self.per_minute);
        let refilled = |bucket: &Bucket| {
            let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.tokens + passed * capacity / 60.0).min(capacity)
        };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = Key::of(address);
        if buckets.of.len() >= MAX_ADDRESSES && !buckets.of.contains_key(&key) {
            // Looking through all of them for every stranger would be work an attacker can order.
            if buckets
                .swept
                .is_none_or(|at| now.saturating_duration_since(at) >= SWEEP_EVERY)
            {
                buckets.of.retain(|_, bucket| refilled(bucket) < capacity);
                buckets.swept = Some(now);
            }
            if buckets.of.len() >= MAX_ADDRESSES {
                key = Key::Rest;
            }
        }
        let bucket = buckets.of.entry(key).or_insert(Bucket {
            tokens: capacity,
            at: now,
        });
        *bucket = Bucket {
            tokens: refilled(bucket),
            at: now,
        };
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        let wait = Duration::from_secs_f64((1.0 - bucket.tokens) * 60.0 / capacity);
        Err(u32::try_from(wait.as_secs() + 1).unwrap_or(60))
    }

    /// Gives a token back: the password was right.
    pub(super) fn give_back(&self, address: Option<IpAddr>) {
        if self.per_minute == 0 {
            return;
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let key = Key::of(address);
        let key = if buckets.of.contains_key(&key) {
            key
        } else {
            Key::Rest
        };
        if let Some(bucket) = buckets.of.get_mut(&key) {
            bucket.tokens = (bucket.tokens + 1.0).min(f64::from(self.per_minute));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn v4(n: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(n))
    }

    #[test]
    fn a_minutes_worth_then_a_wait_then_again() {
        let limit = FailureLimit::new(20);
        let start = Instant::now();
        for _ in 0..20 {
            limit.take(Some(v4(1)), start).unwrap();
        }
        let wait = limit.take(Some(v4(1)), start).unwrap_err();
        assert!((3..=4).contains(&wait), "{wait}");
        limit.take(Some(v4(2)), start).unwrap();
        limit
            .take(Some(v4(1)), start + Duration::from_secs(u64::from(wait)))
            .unwrap();
        assert!(
            limit
                .take(Some(v4(1)), start + Duration::from_secs(u64::from(wait)))
                .is_err()
        );
    }

    #[test]
    fn right_passwords_cost_nothing_and_zero_switches_off() {
        let limit = FailureLimit::new(2);
        let now = Instant::now();
        for _ in 0..100 {
            limit.take(Some(v4(1)), now).unwrap();
            limit.give_back(Some(v4(1)));
        }
        let off = FailureLimit::new(0);
        for _ in 0..100 {
            off.take(None, now).unwrap();
        }
    }

    #[test]
    fn one_ipv6_network_and_a_mapped_ipv4_cannot_multiply_themselves() {
        let limit = FailureLimit::new(1);
        let now = Instant::now();
        let v6 = |last| Some(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, last)));
        limit.take(v6(1), now).unwrap();
        assert!(limit.take(v6(2), now).is_err());
        limit.take(Some(v4(7)), now).unwrap();
        assert!(
            limit
                .take(Some(IpAddr::V6(Ipv4Addr::from(7).to_ipv6_mapped())), now)
                .is_err()
        );
    }

    #[test]
    fn memory_is_bounded() {
        let limit = FailureLimit::new(2);
        let now = Instant::now();
        for n in 0..20_000 {
            let _ = limit.take(Some(v4(n)), now);
        }
        assert!(limit.buckets.lock().unwrap().of.len() <= MAX_ADDRESSES + 1);
        assert!(
            limit.take(Some(v4(30_000)), now).is_err(),
            "the rest share one bucket"
        );
        limit
            .take(Some(v4(30_000)), now + Duration::from_mins(1))
            .unwrap();
        assert_eq!(
            limit.buckets.lock().unwrap().of.len(),
            1,
            "full buckets are forgotten"
        );
    }
}
