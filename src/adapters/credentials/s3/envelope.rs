//! The encrypted bodies of MinIO's admin interface: requests that carry a secret, and the list of users.
//!
//! A body is `salt (32) | algorithm (1) | nonce (8) | chunks`. The key comes from the caller's own secret key and the salt.
//! A chunk holds 16 KiB of plain text and its tag; its nonce is the 8 bytes and a little-endian counter from 1; its
//! associated data is one byte (0x80 for the last chunk, else 0) and the tag of the empty text at counter 0. So chunks can be neither
//! changed nor dropped, added or put in another order.
//!
//! Bodies are made with PBKDF2, which servers accept and which costs a fiftieth of Argon2 on both sides: the secret
//! key is 32 random characters, so a slower derivation would protect nothing. Servers answer with Argon2 (64 MiB,
//! some 70 ms): [`open`] belongs on a thread that may block.

use argon2::{Algorithm as Argon, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::pbkdf2;
use std::num::NonZeroU32;
use zeroize::Zeroizing;

const SALT: usize = 32;
const NONCE: usize = 8;
const HEADER: usize = SALT + 1 + NONCE;
const CHUNK: usize = 16 * 1024;
const TAG: usize = 16;

const ARGON2_AES_GCM: u8 = 0;
const ARGON2_CHACHA20: u8 = 1;
const PBKDF2_AES_GCM: u8 = 2;

const PBKDF2_ROUNDS: NonZeroU32 = match NonZeroU32::new(8192) {
    Some(rounds) => rounds,
    None => NonZeroU32::MIN,
};

/// Why a body cannot be made or read; holds nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// Too short, or an algorithm nobody knows.
    Form,
    /// Encrypted with another key, or changed on the way.
    Seal,
    /// The machine has no memory or no random numbers left.
    Machine,
}

/// Encrypts a body for the server that knows `secret_key`.
pub(super) fn seal(secret_key: &str, plain: &[u8]) -> Result<Vec<u8>, Broken> {
    let mut header = [0; HEADER];
    aws_lc_rs::rand::fill(&mut header).map_err(|_| Broken::Machine)?;
    header[SALT] = PBKDF2_AES_GCM;
    seal_under(secret_key, header, plain)
}

fn seal_under(secret_key: &str, header: [u8; HEADER], plain: &[u8]) -> Result<Vec<u8>, Broken> {
    let mut stream = Stream::new(secret_key, &header)?;
    let mut sealed = header.to_vec();
    let mut rest = plain;
    loop {
        let (chunk, after) = rest.split_at(rest.len().min(CHUNK));
        stream.seal(chunk, after.is_empty(), &mut sealed)?;
        if after.is_empty() {
            return Ok(sealed);
        }
        rest = after;
    }
}

/// Decrypts a body that the server made with the same `secret_key`. May take a tenth of a second.
pub(super) fn open(secret_key: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Broken> {
    let (header, mut rest) = sealed.split_first_chunk::<HEADER>().ok_or(Broken::Form)?;
    let mut stream = Stream::new(secret_key, header)?;
    let mut plain = Zeroizing::new(Vec::with_capacity(rest.len()));
    loop {
        let (chunk, after) = rest.split_at(rest.len().min(CHUNK + TAG));
        stream.open(chunk, after.is_empty(), &mut plain)?;
        if after.is_empty() {
            return Ok(plain);
        }
        rest = after;
    }
}

struct Stream {
    key: LessSafeKey,
    nonce: [u8; NONCE],
    counter: u32,
    /// The flag of the chunk, then the tag of the empty text.
    associated: [u8; 1 + TAG],
}

impl Stream {
    fn new(secret_key: &str, header: &[u8; HEADER]) -> Result<Self, Broken> {
        let (salt, rest) = header.split_at(SALT);
        let (algorithm, nonce) = (rest[0], &rest[1..]);
        let key = derive(algorithm, secret_key, salt)?;
        let aead: &'static Algorithm = if algorithm == ARGON2_CHACHA20 {
            &CHACHA20_POLY1305
        } else {
            &AES_256_GCM
        };
        let key = UnboundKey::new(aead, key.as_ref()).map_err(|_| Broken::Machine)?;
        let mut stream = Self {
            key: LessSafeKey::new(key),
            nonce: nonce.try_into().map_err(|_| Broken::Form)?,
            counter: 0,
            associated: [0; 1 + TAG],
        };
        let nonce = stream.next_nonce();
        let tag = stream
            .key
            .seal_in_place_separate_tag(nonce, Aad::empty(), &mut [])
            .map_err(|_| Broken::Machine)?;
        stream.associated[1..].copy_from_slice(tag.as_ref());
        Ok(stream)
    }

    /// Each is used once; 2^32 chunks are far beyond what is read or sent.
    fn next_nonce(&mut self) -> Nonce {
        let mut nonce = [0; NONCE + 4];
        nonce[..NONCE].copy_from_slice(&self.nonce);
        nonce[NONCE..].copy_from_slice(&self.counter.to_le_bytes());
        self.counter = self.counter.wrapping_add(1);
        Nonce::assume_unique_for_key(nonce)
    }

    fn associated(&mut self, last: bool) -> Aad<[u8; 1 + TAG]> {
        self.associated[0] = if last { 0x80 } else { 0 };
        Aad::from(self.associated)
    }

    fn seal(&mut self, chunk: &[u8], last: bool, into: &mut Vec<u8>) -> Result<(), Broken> {
        let (nonce, associated) = (self.next_nonce(), self.associated(last));
        let start = into.len();
        into.extend_from_slice(chunk);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, associated, &mut into[start..])
            .map_err(|_| Broken::Machine)?;
        into.extend_from_slice(tag.as_ref());
        Ok(())
    }

    fn open(&mut self, chunk: &[u8], last: bool, into: &mut Vec<u8>) -> Result<(), Broken> {
        let (nonce, associated) = (self.next_nonce(), self.associated(last));
        let mut chunk = Zeroizing::new(chunk.to_vec());
        let plain = self
            .key
            .open_in_place(nonce, associated, &mut chunk)
            .map_err(|_| Broken::Seal)?;
        into.extend_from_slice(plain);
        Ok(())
    }
}

fn derive(algorithm: u8, secret_key: &str, salt: &[u8]) -> Result<Zeroizing<[u8; 32]>, Broken> {
    let mut key = Zeroizing::new([0; 32]);
    match algorithm {
        ARGON2_AES_GCM | ARGON2_CHACHA20 => Params::new(64 * 1024, 1, 4, Some(key.len()))
            .and_then(|params| {
                Argon2::new(Argon::Argon2id, Version::V0x13, params).hash_password_into(
                    secret_key.as_bytes(),
                    salt,
                    key.as_mut(),
                )
            })
            .map_err(|_| Broken::Machine)?,
        PBKDF2_AES_GCM => pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            PBKDF2_ROUNDS,
            salt,
            secret_key.as_bytes(),
            key.as_mut(),
        ),
        _ => return Err(Broken::Form),
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const KEY: &str = "secretkey";

    fn sealed(algorithm: u8, plain: &[u8]) -> Vec<u8> {
        let mut header = [7; HEADER];
        header[SALT] = algorithm;
        seal_under(KEY, header, plain).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_again_in_every_algorithm() {
        for algorithm in [ARGON2_AES_GCM, ARGON2_CHACHA20, PBKDF2_AES_GCM] {
            let body = sealed(algorithm, b"hello");
            assert_eq!(body.len(), HEADER + 5 + TAG);
            assert_eq!(open(KEY, &body).unwrap().as_slice(), b"hello", "{algorithm}");
            assert_eq!(open("other key", &body), Err(Broken::Seal), "{algorithm}");
        }
    }

    #[test]
    fn lengths_around_a_chunk_survive() {
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 3] {
            let plain: Vec<u8> = (0..=255).cycle().take(length).collect();
            let body = seal(KEY, &plain).unwrap();
            assert_eq!(body.len(), HEADER + length + TAG * length.div_ceil(CHUNK).max(1));
            assert_eq!(open(KEY, &body).unwrap().as_slice(), plain, "{length}");
        }
    }

    #[test]
    fn changed_cut_or_reordered_bodies_are_refused() {
        let good = sealed(PBKDF2_AES_GCM, &vec![1; 2 * CHUNK]);
        let chunk = CHUNK + TAG;
        for at in [0, SALT + 1, HEADER, HEADER + chunk, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(open(KEY, &bad), Err(Broken::Seal), "byte {at}");
        }
        let mut unknown = good.clone();
        unknown[SALT] = 3;
        assert_eq!(open(KEY, &unknown), Err(Broken::Form));
        assert_eq!(open(KEY, &good[..HEADER - 1]), Err(Broken::Form));
        assert_eq!(open(KEY, &good[..HEADER]), Err(Broken::Seal));
        assert_eq!(
            open(KEY, &good[..HEADER + chunk]),
            Err(Broken::Seal),
            "the last chunk is gone"
        );
        let swapped = [
            &good[..HEADER],
            &good[HEADER + chunk..],
            &good[HEADER..HEADER + chunk],
        ]
        .concat();
        assert_eq!(open(KEY, &swapped), Err(Broken::Seal));
    }

    #[test]
    fn the_same_body_is_never_sealed_alike() {
        assert_ne!(seal(KEY, b"x").unwrap(), seal(KEY, b"x").unwrap());
    }
}
