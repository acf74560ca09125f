//! Password hashes: argon2id in PHC form, made and checked.
//!
//! A check fills 19 MiB by design. glibc keeps blocks of that size for the next time once it saw one
//! freed, so a broker that checks two passwords an hour would hold 40 MB for ever. What must stay
//! true: the memory of a check is given back to the system when the check ends.

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use subtle::ConstantTimeEq as _;

/// Memory, passes and lanes of a new hash: 19 MiB, two, one.
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);
/// Bytes of salt and of hash.
const SALT: usize = 16;
const HASH: usize = 32;
/// glibc maps what is larger than 32 MiB by itself, and unmaps it when it is freed; only what is touched takes memory.
const OWN_MAPPING: usize = 33 * 1024 * 1024;

/// The memory of one check.
fn room(params: &Params) -> Vec<Block> {
    let blocks = params.block_count();
    let mut room = Vec::with_capacity(blocks.max(OWN_MAPPING / Block::SIZE));
    room.resize_with(blocks, Block::default);
    room
}

/// Hashes a password, with a fresh random salt. Errors: the system gave no randomness.
pub fn hash_password(password: &str) -> Result<String, String> {
    let fail = |why: &dyn std::fmt::Display| format!("the password cannot be hashed: {why}");
    let (memory, passes, lanes) = COST;
    let params = Params::new(memory, passes, lanes, Some(HASH)).map_err(|e| fail(&e))?;
    let (mut salt, mut hash) = ([0; SALT], [0; HASH]);
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| fail(&"the system gave no randomness"))?;
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone())
        .hash_password_into_with_memory(password.as_bytes(), &salt, &mut hash, room(&params))
        .map_err(|e| fail(&e))?;
    let hash = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(&params).map_err(|e| fail(&e))?,
        salt: Some(Salt::new(&salt).map_err(|e| fail(&e))?),
        hash: Some(Output::new(&hash).map_err(|e| fail(&e))?),
    };
    Ok(hash.to_string())
}

/// Whether this is the password of `hash`; never when the hash is not one of argon2.
pub(super) fn is_password_of(password: &[u8], hash: &PasswordHash) -> bool {
    let (Some(salt), Some(expected)) = (&hash.salt, &hash.hash) else {
        return false;
    };
    let algorithm = Algorithm::try_from(hash.algorithm.as_str());
    let version = hash.version.map_or(Ok(Version::V0x13), Version::try_from);
    let (Ok(algorithm), Ok(version), Ok(params)) = (algorithm, version, Params::try_from(hash)) else {
        return false;
    };
    let mut found = vec![0; expected.len()];
    let room = room(&params);
    Argon2::new(algorithm, version, params)
        .hash_password_into_with_memory(password, salt, &mut found, room)
        .is_ok()
        && bool::from(found.ct_eq(expected.as_bytes()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn hashes_have_the_stated_cost_and_a_salt_of_their_own() {
        let hash = hash_password("x").unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert_ne!(hash, hash_password("x").unwrap());
    }

    #[test]
    fn right_and_wrong_passwords() {
        let made = hash_password("right").unwrap();
        // A published test vector of argon2, with other cost.
        let vector = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";
        for (text, password, right) in [
            (made.as_str(), "right", true),
            (&made, "wrong", false),
            (&made, "right ", false),
            (&made, "", false),
            (vector, "password", true),
            (vector, "right", false),
        ] {
            let hash = PasswordHash::new(text).unwrap();
            assert_eq!(is_password_of(password.as_bytes(), &hash), right, "{password}");
        }
    }
}
