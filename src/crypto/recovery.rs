//! Recovery keys: 32 random bytes in a form that survives paper, a telephone and a tired typist.

use zeroize::{Zeroize, Zeroizing};

use super::CryptoError;
use super::secret::Secret;
use crate::env::Env;

const PREFIX: &str = "SR1";
const GROUPS: usize = 8;
const GROUP_LEN: usize = 7;
const SYMBOLS: usize = GROUPS * GROUP_LEN;
const KEY_LEN: usize = 32;
const CHECK_LEN: usize = 3;
const CHECK_DOMAIN: &[u8] = b"strongroom recovery v1";
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const _: () = assert!(SYMBOLS * 5 == (KEY_LEN + CHECK_LEN) * 8);

/// A recovery key. It opens a slot like a keyfile does, but fits on a line of paper.
pub struct RecoveryKey(Secret<KEY_LEN>);

impl RecoveryKey {
    /// Draws a new key.
    #[must_use]
    pub fn generate(env: &dyn Env) -> Self {
        RecoveryKey(Secret::random(env))
    }

    pub(crate) fn expose(&self) -> &[u8; KEY_LEN] {
        self.0.expose()
    }

    /// Returns the text to print: `SR1-` and eight groups of seven characters, the last of them check digits.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; KEY_LEN + CHECK_LEN]);
        bytes[..KEY_LEN].copy_from_slice(self.expose());
        bytes[KEY_LEN..].copy_from_slice(&check_digits(self.expose()));
        // The text never grows beyond this, so no copy of it is left behind in memory.
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + SYMBOLS + GROUPS));
        text.push_str(PREFIX);
        for i in 0..SYMBOLS {
            if i % GROUP_LEN == 0 {
                text.push('-');
            }
            text.push(char::from(ALPHABET[usize::from(symbol(&bytes, i))]));
        }
        text
    }

    /// Reads what a person typed. Case, spaces and dashes don't matter; O is read as 0, I and L as 1.
    ///
    /// # Errors
    ///
    /// [`CryptoError::BadKeyMaterial`] if the text can't be a recovery key, [`CryptoError::Mistyped`] if it
    /// has the form of one but its check digits don't fit.
    pub fn parse(text: &str) -> Result<Self, CryptoError> {
        let symbols = Zeroizing::new(decode_symbols(text.trim())?);
        if symbols[..PREFIX.len()] != prefix_values() {
            return Err(CryptoError::BadKeyMaterial("a recovery key begins with SR1"));
        }
        let mut bytes = Zeroizing::new([0u8; KEY_LEN + CHECK_LEN]);
        for (i, value) in symbols[PREFIX.len()..].iter().enumerate() {
            for bit in 0..5 {
                let at = i * 5 + bit;
                bytes[at / 8] |= (value >> (4 - bit) & 1) << (7 - at % 8);
            }
        }
        let key = Secret::fill_with(|key: &mut [u8; KEY_LEN]| key.copy_from_slice(&bytes[..KEY_LEN]));
        if check_digits(key.expose()) == bytes[KEY_LEN..] {
            Ok(RecoveryKey(key))
        } else {
            Err(CryptoError::Mistyped)
        }
    }
}

/// Returns five bits of `bytes`, the `i`th from the left.
fn symbol(bytes: &[u8; KEY_LEN + CHECK_LEN], i: usize) -> u8 {
    (0..5).fold(0, |value, bit| {
        let at = i * 5 + bit;
        value << 1 | bytes[at / 8] >> (7 - at % 8) & 1
    })
}

fn check_digits(key: &[u8; KEY_LEN]) -> [u8; CHECK_LEN] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(CHECK_DOMAIN).update(key);
    let mut digits = [0; CHECK_LEN];
    hasher.finalize_xof().fill(&mut digits);
    digits
}

/// Returns the values of the prefix read as symbols, which is how it is typed.
fn prefix_values() -> [u8; PREFIX.len()] {
    // S and R and 1 in the alphabet.
    [25, 24, 1]
}

/// Returns the value of each character that counts, prefix included.
fn decode_symbols(text: &str) -> Result<[u8; PREFIX.len() + SYMBOLS], CryptoError> {
    let mut symbols = [0; PREFIX.len() + SYMBOLS];
    let mut n = 0;
    for c in text.chars().filter(|c| !matches!(c, ' ' | '-')) {
        let upper = match c.to_ascii_uppercase() {
            'O' => '0',
            'I' | 'L' => '1',
            other => other,
        };
        let value = ALPHABET.iter().position(|symbol| char::from(*symbol) == upper);
        let (Some(value), Some(slot)) = (value, symbols.get_mut(n)) else {
            symbols.zeroize();
            return Err(CryptoError::BadKeyMaterial(match value {
                None => "a recovery key has the letters and digits of Crockford's base32 only (no U)",
                Some(_) => "a recovery key has eight groups of seven characters after SR1, this has more",
            }));
        };
        // The alphabet has 32 symbols.
        *slot = value as u8;
        n += 1;
    }
    if n < symbols.len() {
        symbols.zeroize();
        return Err(CryptoError::BadKeyMaterial(
            "a recovery key has eight groups of seven characters after SR1, this has fewer",
        ));
    }
    Ok(symbols)
}

/// Body of the fuzz target: what is read as a recovery key is written in one way, and reads as the same key.
pub fn fuzz_recovery_key(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(key) = RecoveryKey::parse(text) {
        let again = RecoveryKey::parse(&key.to_text());
        assert!(again.is_ok_and(|again| again.expose() == key.expose()));
    }
}

#[cfg(test)]
mod tests;
