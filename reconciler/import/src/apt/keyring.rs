//! Keys as apt finds them: binary keyrings, or armoured text (RFC 9580, 6.2).
//! `gpgv` takes binary ones only.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const BEGIN: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
const END: &str = "-----END PGP PUBLIC KEY BLOCK-----";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArmourError {
    #[error("a key block has no end")]
    Cut,
    #[error("a key block is no base64")]
    Base64,
}

/// The keys in binary form; what is not armoured is returned as it is.
///
/// # Errors
/// An armoured block is damaged.
pub fn binary(keyring: &[u8]) -> Result<Vec<u8>, ArmourError> {
    let Ok(text) = std::str::from_utf8(keyring) else { return Ok(keyring.to_vec()) };
    if !text.contains(BEGIN) {
        return Ok(keyring.to_vec());
    }
    let mut keys = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once(BEGIN) {
        let (block, after) = after.split_once(END).ok_or(ArmourError::Cut)?;
        rest = after;
        let mut body = String::new();
        // Headers (`Comment: …`) end at an empty line; without one there are none.
        let lines = block.trim_start_matches(['\r', '\n']).lines().map(str::trim);
        let mut in_headers = block.lines().any(|line| line.contains(':'));
        for line in lines {
            match in_headers {
                true => in_headers = !line.is_empty(),
                // The checksum is optional and adds nothing to the signature's.
                false if line.starts_with('=') => break,
                false => body.push_str(line),
            }
        }
        keys.extend(STANDARD.decode(body).map_err(|_| ArmourError::Base64)?);
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn armour_is_taken_off() {
        let armoured = format!(
            "{BEGIN}\nComment: a key\n\naGVs\nbG8=\n=abcd\n{END}\n\n{BEGIN}\n\nIQ==\n{END}\n"
        );
        assert_eq!(binary(armoured.as_bytes()), Ok(b"hello!".to_vec()));
        assert_eq!(binary(b"\x99\x01binary"), Ok(b"\x99\x01binary".to_vec()));
    }

    #[test]
    fn damage_is_found() {
        assert_eq!(binary(format!("{BEGIN}\n\naGVs").as_bytes()), Err(ArmourError::Cut));
        let bad = format!("{BEGIN}\n\n!!!\n{END}\n");
        assert_eq!(binary(bad.as_bytes()), Err(ArmourError::Base64));
    }
}
