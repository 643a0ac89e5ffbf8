//! What `gpgv` found, from its status lines (GnuPG's `doc/DETAILS`).
//!
//! One good signature by an allowed key is enough, as some texts are signed by an
//! old and a new key while keys change; a bad one is never overlooked.

/// The arguments that make gpgv say what [`judge`] reads, and refuse SHA-1.
pub const ARGUMENTS: [&str; 4] = ["--status-fd", "2", "--weak-digest", "SHA1"];

/// The fingerprint of the primary key of the first good signature by an allowed key.
/// `allowed` is asked with the fingerprints of the key that signed and of its primary
/// key; `disallowed` says of a key, in a message, why it does not count.
///
/// # Errors
/// Why no signature counts.
pub fn judge(
    said: &str,
    allowed: impl Fn(&str, &str) -> bool,
    disallowed: &str,
) -> Result<String, String> {
    // Each signature begins with NEWSIG, GOODSIG says that it is good and its key
    // valid, VALIDSIG names the key.
    let (mut good, mut found, mut why) = (false, None, Vec::new());
    for line in said.lines().filter_map(|line| line.strip_prefix("[GNUPG:] ")) {
        let mut words = line.split(' ');
        match (words.next().unwrap_or(""), words.next().unwrap_or("")) {
            ("NEWSIG", _) => good = false,
            ("GOODSIG", _) => good = true,
            ("VALIDSIG", fingerprint) if good => {
                let primary = words.next_back().unwrap_or(fingerprint);
                if allowed(fingerprint, primary) {
                    found.get_or_insert_with(|| primary.to_owned());
                } else {
                    why.push(format!("the key {primary} is not {disallowed}"));
                }
            }
            ("BADSIG", key) => return Err(format!("the signature by the key {key} is bad")),
            ("EXPSIG", key) => why.push(format!("the signature by the key {key} has expired")),
            ("EXPKEYSIG", key) => why.push(format!("the key {key} has expired")),
            ("REVKEYSIG", key) => why.push(format!("the key {key} was revoked")),
            ("NO_PUBKEY", key) => why.push(format!("the key {key} is not trusted here")),
            _ => {}
        }
    }
    match found {
        Some(primary) => Ok(primary),
        None if why.is_empty() => Err("there is no signature that gpgv knows".to_owned()),
        None => Err(why.join("; ")),
    }
}
