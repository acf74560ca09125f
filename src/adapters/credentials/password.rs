//! Passwords for backend users and admins, made in one place so that their strength is decided once.
//!
//! Letters and digits only: such a password needs no escaping in a URI, a shell, a properties file or an
//! ACL file, and is unchanged by SASLprep. It starts with a letter so that no reader takes it for a number.

use crate::ports::{PortError, PortResult};

/// Characters of a password; 32 of 62 kinds carry 190 bits.
pub const LENGTH: usize = 32;

const LETTERS_FIRST: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const LETTERS: u8 = 52;

/// A new password from the system's secure random numbers.
///
/// Fails (transient) only when the system has none to give.
pub fn generate() -> PortResult<String> {
    let mut password = String::with_capacity(LENGTH);
    let mut random = [0_u8; 64];
    while password.len() < LENGTH {
        aws_lc_rs::rand::fill(&mut random)
            .map_err(|_| PortError::transient("The system gives no random numbers; try again."))?;
        for byte in random {
            if password.len() == LENGTH {
                break;
            }
            let kinds = if password.is_empty() { LETTERS } else { 62 };
            if let Some(index) = unbiased(byte, kinds) {
                password.push(char::from(LETTERS_FIRST[index]));
            }
        }
    }
    zeroize::Zeroize::zeroize(&mut random);
    Ok(password)
}

/// Maps a random byte to `0..kinds`, or to nothing where `% kinds` would prefer the low numbers.
fn unbiased(byte: u8, kinds: u8) -> Option<usize> {
    let usable = u8::MAX - u8::MAX % kinds;
    (byte < usable).then(|| usize::from(byte % kinds))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn passwords_have_the_promised_form_and_differ() {
        let some: std::collections::BTreeSet<_> = (0..200).map(|_| generate().unwrap()).collect();
        assert_eq!(some.len(), 200);
        for password in &some {
            assert_eq!(password.len(), LENGTH);
            assert!(password.bytes().all(|b| b.is_ascii_alphanumeric()), "{password}");
            assert!(
                password.starts_with(|c: char| c.is_ascii_alphabetic()),
                "{password}"
            );
        }
    }

    #[test]
    fn every_character_is_equally_likely() {
        for kinds in [LETTERS, 62] {
            let mut hits = BTreeMap::<usize, usize>::new();
            for byte in 0..=u8::MAX {
                if let Some(index) = unbiased(byte, kinds) {
                    *hits.entry(index).or_default() += 1;
                }
            }
            assert_eq!(hits.len(), usize::from(kinds));
            assert!(hits.values().all(|n| *n == 4), "{hits:?}");
        }
    }
}
