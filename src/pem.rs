//! PEM files, taken whole or refused: never a part of one.
//!
//! What is unambiguous is read as it is meant: a byte order mark, any kind of line end, indented lines, a block that begins
//! on the line where another one ends, explanatory text before and after blocks (RFC 7468, 5.2). Everything that might be
//! a block, or a piece of one, and cannot be read as such is a [`Fault`].

use std::fmt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer,
    PrivateSec1KeyDer,
};

use crate::whole;

/// Revocation lists are the largest files. Each handshake hashes the list of its client's CA.
const LARGEST: u64 = 32 << 20;

const BYTE_ORDER_MARK: char = '\u{feff}';
const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
const DASHES: &str = "-----";
/// As many characters of nothing but Base64 on a line of text are a piece of a block.
const PIECE: usize = 32;
/// As many are, wherever they stand, when they begin as the Base64 of a block does.
const SHORTEST_START: usize = 16;

/// Why a file is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// From 1 on; where one line is to blame.
    line: Option<usize>,
    what: String,
    remedy: String,
}

/// Certificates of those who are trusted: nothing else is in the file.
///
/// # Errors
/// [`Fault`].
pub(crate) fn authorities(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let blocks = blocks(text, CERTIFICATE)?;
    let taken = blocks.iter().map(|block| match block.label.as_str() {
        label if is_certificate(label) => Ok(CertificateDer::from(block.der()?)),
        label if is_key(label) => Err(block.fault("is a private key", "only certificates belong there: delete it")),
        _ => Err(block.unknown(CERTIFICATE)),
    });
    taken.collect()
}

/// A certificate and those above it. The private key may be in the same file, and is left to [`private_key`].
///
/// # Errors
/// [`Fault`].
pub(crate) fn chain(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let blocks = blocks(text, CERTIFICATE)?;
    let mut chain = Vec::new();
    for block in &blocks {
        match block.label.as_str() {
            label if is_certificate(label) => chain.push(CertificateDer::from(block.der()?)),
            label if is_key(label) || label == EC_PARAMETERS => {}
            _ => return Err(block.unknown(CERTIFICATE)),
        }
    }
    if chain.is_empty() { Err(nothing(CERTIFICATE)) } else { Ok(chain) }
}

/// Revocation lists.
///
/// # Errors
/// [`Fault`].
pub(crate) fn lists(text: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, Fault> {
    let blocks = blocks(text, CRL)?;
    let taken = blocks.iter().map(|block| match block.label.as_str() {
        // The second one is of before RFC 7468.
        "X509 CRL" | "CRL" => Ok(CertificateRevocationListDer::from(block.der()?)),
        _ => Err(block.unknown(CRL)),
    });
    taken.collect()
}

/// The one private key. Certificates may be in the same file, and are left to [`chain`].
///
/// # Errors
/// [`Fault`].
pub(crate) fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, Fault> {
    let blocks = blocks(text, KEY)?;
    let mut key = None;
    for block in &blocks {
        let label = block.label.as_str();
        if is_certificate(label) || label == EC_PARAMETERS {
            continue;
        }
        if !is_key(label) {
            return Err(block.unknown(KEY));
        }
        if label == "ENCRYPTED PRIVATE KEY" || block.headers {
            return Err(block.fault("is a private key with a passphrase", "remove it: `openssl pkey -in … -out …`"));
        }
        if key.is_some() {
            return Err(block.fault("is a second private key", "keep the one of the certificate"));
        }
        key = Some(match label {
            "PRIVATE KEY" => PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(block.der()?)),
            "RSA PRIVATE KEY" => PrivateKeyDer::Pkcs1(PrivatePkcs1KeyDer::from(block.der()?)),
            "EC PRIVATE KEY" => PrivateKeyDer::Sec1(PrivateSec1KeyDer::from(block.der()?)),
            _ => return Err(block.fault("is a private key of a kind that cannot be used", CONVERT_KEY)),
        });
    }
    key.ok_or_else(|| nothing(KEY))
}

/// A file for one of the functions above.
///
/// # Errors
/// Why it cannot be read.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>, String> {
    whole::read(file, LARGEST).map_err(|error| error.to_string())
}

const CERTIFICATE: &str = "certificate";
const CRL: &str = "X509 CRL";
const KEY: &str = "private key";
const EC_PARAMETERS: &str = "EC PARAMETERS";
const WHOLE: &str = "copy it again, whole";
const CONVERT_KEY: &str = "it must hold a PEM key of PKCS #8, PKCS #1 or SEC 1 without a passphrase \
                           (`openssl pkey -in … -out …` makes one)";

/// The second one is of before RFC 7468, with the same contents.
fn is_certificate(label: &str) -> bool {
    matches!(label, "CERTIFICATE" | "X509 CERTIFICATE")
}

fn is_key(label: &str) -> bool {
    label.ends_with("PRIVATE KEY")
}

fn nothing(wanted: &str) -> Fault {
    let what = format!("holds no PEM {wanted}");
    let remedy = if wanted == KEY { CONVERT_KEY } else { "convert it to PEM, or name another file" };
    Fault { line: None, what, remedy: remedy.to_owned() }
}

/// What stands between `BEGIN` and `END`.
#[derive(Debug)]
struct Block {
    label: String,
    /// Of its beginning.
    line: usize,
    /// With its line, without white space.
    body: Vec<(usize, String)>,
    /// It has some of RFC 1421, as encrypted keys do.
    headers: bool,
}

impl Block {
    fn der(&self) -> Result<Vec<u8>, Fault> {
        if self.headers {
            return Err(self.fault("has lines with a colon in it", WHOLE));
        }
        let foreign = |c: char| !(c.is_ascii_alphanumeric() || "+/=".contains(c));
        if let Some((line, _)) = self.body.iter().find(|(_, text)| text.contains(foreign)) {
            return Err(Fault::at(*line, "is no Base64, inside a block", WHOLE));
        }
        let text: String = self.body.iter().map(|(_, text)| text.as_str()).collect();
        if text.is_empty() {
            return Err(self.fault("is empty", WHOLE));
        }
        // The decoder's own words would quote the file.
        let der = STANDARD.decode(text).map_err(|_| self.fault("is cut short, or damaged: no whole Base64", WHOLE))?;
        if !is_one_value(&der) {
            return Err(self.fault("is cut short, or has more than one value in it", WHOLE));
        }
        Ok(der)
    }

    fn unknown(&self, wanted: &str) -> Fault {
        let remedy = match self.label.as_str() {
            "TRUSTED CERTIFICATE" => {
                "write it without OpenSSL's trust settings: `openssl x509 -in … -out …`".to_owned()
            }
            "PKCS7" | "CMS" => "take the certificates out of it: `openssl pkcs7 -print_certs -in … -out …`".to_owned(),
            _ if wanted == KEY => CONVERT_KEY.to_owned(),
            _ => format!("each block must be a PEM {wanted}: delete it, or name another file"),
        };
        let what = format!("is a block of another kind, `{}`", shown(&self.label));
        Fault { line: Some(self.line), what, remedy }
    }

    fn fault(&self, what: &str, remedy: &str) -> Fault {
        Fault::at(self.line, format!("begins a block that {what}"), remedy)
    }
}

/// Whether it is a sequence of DER, and nothing after it.
fn is_one_value(der: &[u8]) -> bool {
    let [0x30, length, rest @ ..] = der else { return false };
    let length = usize::from(*length);
    if length < 0x80 {
        return rest.len() == length;
    }
    let Some((length, value)) =
        rest.split_at_checked(length - 0x80).filter(|(length, _)| (1..=4).contains(&length.len()))
    else {
        return false;
    };
    value.len() == length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
}

/// All blocks of a file, at least one; `wanted` is for the words of a refusal.
fn blocks(bytes: &[u8], wanted: &str) -> Result<Vec<Block>, Fault> {
    let text = decoded(bytes, wanted)?;
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    let mut wrapped = Wrapped::default();
    for (number, line) in text.replace("\r\n", "\n").split(['\n', '\r']).enumerate() {
        let number = number + 1;
        // One in front of each of the files that were put together.
        let mut rest = line.trim_start_matches(BYTE_ORDER_MARK).trim_ascii();
        let mut at_start = true;
        while !rest.is_empty() {
            rest = match &mut open {
                None => outside(rest, number, at_start, &mut wrapped, &mut open)?,
                Some(block) => {
                    let (rest, ended) = inside(rest, number, block)?;
                    if ended {
                        blocks.extend(open.take());
                    }
                    rest
                }
            }
            .trim_start_matches(|c: char| c.is_ascii_whitespace() || c == BYTE_ORDER_MARK);
            at_start = false;
        }
    }
    if let Some(block) = open {
        let what = format!("has no end (-----END {}-----): the file is cut off", shown(&block.label));
        return Err(block.fault(&what, WHOLE));
    }
    if blocks.is_empty() { Err(nothing(wanted)) } else { Ok(blocks) }
}

fn decoded<'a>(bytes: &'a [u8], wanted: &str) -> Result<&'a str, Fault> {
    let whole = |what: &str, remedy: &str| Fault { line: None, what: what.to_owned(), remedy: remedy.to_owned() };
    let marked = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    if marked.trim_ascii().is_empty() {
        return Err(whole("is empty", &format!("it must hold a PEM {wanted}")));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(whole("is UTF-16", "write it as ASCII or UTF-8"));
    }
    if let [0x30, 0x80..=0xff, ..] = bytes {
        let remedy = "convert it: `openssl x509 -inform DER -in … -out …`, or `openssl crl`, `openssl pkey`";
        return Err(whole("is DER (binary), not PEM", remedy));
    }
    let line = |valid: usize| bytes[..valid].iter().filter(|byte| **byte == b'\n').count() + 1;
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        Ok(text) => Err(Fault::at(line(text.find('\0').unwrap_or(0)), "holds a NUL byte, so is no text", WHOLE)),
        Err(error) => Err(Fault::at(line(error.valid_up_to()), "is no UTF-8 text", WHOLE)),
    }
}

/// Takes the beginning of a block, or text to the end of the line. Gives the rest of the line.
fn outside<'a>(
    rest: &'a str,
    line: usize,
    at_start: bool,
    wrapped: &mut Wrapped,
    open: &mut Option<Block>,
) -> Result<&'a str, Fault> {
    if let Some(after) = rest.strip_prefix(BEGIN) {
        let (label, after) = label(after, line)?;
        *wrapped = Wrapped::default();
        *open = Some(Block { label, line, body: Vec::new(), headers: false });
        return Ok(after);
    }
    if rest.starts_with(END) {
        return Err(Fault::at(line, "ends a block that has no beginning", WHOLE));
    }
    if !at_start {
        return Err(Fault::at(line, "has text behind the end of a block", "put the text on a line of its own"));
    }
    if is_like_a_boundary(rest) {
        let what = "is nearly, but not quite, a beginning or an end of a block";
        return Err(Fault::at(line, what, "write -----BEGIN …----- and -----END …----- alone, or delete the line"));
    }
    let whole_line = (rest.len() >= PIECE && is_base64(rest)).then_some(line);
    let within = rest.split(|c| !is_base64_char(c)).any(is_start_of_block).then_some(line);
    if let Some(line) = whole_line.or(within).or_else(|| wrapped.take(rest, line)) {
        return Err(Fault::at(
            line,
            "is a piece of a block, outside of any",
            "complete the block, or delete the piece",
        ));
    }
    Ok("")
}

fn is_base64_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "+/".contains(c)
}

/// A line of `=` under a heading is none.
fn is_base64(text: &str) -> bool {
    let content = text.trim_end_matches('=');
    !content.is_empty() && text.len() - content.len() <= 2 && content.chars().all(is_base64_char)
}

/// Whether a run of Base64 begins as all of DER does that is 128 bytes or longer.
fn is_start_of_block(run: &str) -> bool {
    run.len() >= SHORTEST_START
        && run.strip_prefix("MI").is_some_and(|rest| rest.starts_with(|c| ('G'..='P').contains(&c)))
        && run.contains(|c: char| c.is_ascii_lowercase())
}

/// Base64 in pieces of one width, the last of which may be shorter: lines that were wrapped, or words on a line.
#[derive(Default)]
struct Wrapped {
    /// Where it begins.
    line: usize,
    /// 0: the next piece begins another one.
    width: usize,
    length: usize,
    /// Whether it has capitals, small letters, and others: words rarely have all three.
    kinds: [bool; 3],
}

impl Wrapped {
    /// Takes a line of text. Gives where a piece of a block begins, once it is long enough, and looks like no words.
    fn take(&mut self, text: &str, line: usize) -> Option<usize> {
        let words = || text.split_ascii_whitespace();
        if !words().all(is_base64) {
            *self = Self::default();
            return None;
        }
        words().find_map(|word| {
            if word.len() > self.width {
                *self = Self { line, width: word.len(), ..Self::default() };
            }
            if word.len() < self.width {
                self.width = 0;
            }
            self.length += word.len();
            for byte in word.bytes() {
                self.kinds[0] |= byte.is_ascii_uppercase();
                self.kinds[1] |= byte.is_ascii_lowercase();
                self.kinds[2] |= !byte.is_ascii_alphabetic();
            }
            (self.length >= PIECE && self.kinds == [true; 3]).then_some(self.line)
        })
    }
}

/// Takes what is inside a block, to its end or the line's. Gives the rest of the line, and whether the block has ended.
fn inside<'a>(rest: &'a str, line: usize, block: &mut Block) -> Result<(&'a str, bool), Fault> {
    let (content, boundary) = match rest.find(DASHES) {
        Some(place) => rest.split_at(place),
        None => (rest, ""),
    };
    if content.contains(':') && !content.contains(DASHES) {
        block.headers = true;
    } else if !content.is_empty() {
        block.body.push((line, content.chars().filter(|c| !c.is_ascii_whitespace()).collect()));
    }
    if boundary.is_empty() {
        return Ok(("", false));
    }
    if boundary.starts_with(BEGIN) {
        let what =
            format!("has no end (-----END {}-----) before line {line}, where another begins", shown(&block.label));
        return Err(block.fault(&what, WHOLE));
    }
    let Some(after) = boundary.strip_prefix(END) else {
        return Err(Fault::at(line, "is no Base64, inside a block", WHOLE));
    };
    let (label, after) = label(after, line)?;
    if label != block.label {
        let (label, own) = (shown(&label), shown(&block.label));
        let what = format!("ends `{label}`, where the block that began on line {} is `{own}`", block.line);
        return Err(Fault::at(line, what, WHOLE));
    }
    Ok((after, true))
}

/// The label up to its dashes, and what is behind them.
fn label(after: &str, line: usize) -> Result<(String, &str), Fault> {
    let bad = || Fault::at(line, "has a beginning or an end of a block without five dashes behind it", WHOLE);
    let (label, rest) = after.split_once(DASHES).ok_or_else(bad)?;
    let odd = |c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || " #-".contains(c));
    // Six dashes or more are five and the beginning of something else, which has to be a block.
    if label.is_empty() || label.contains(odd) || (rest.starts_with('-') && !rest.starts_with(DASHES)) {
        return Err(bad());
    }
    Ok((label.to_owned(), rest))
}

/// Two dashes of any kind or more in front of one of the two words, five and the beginning of a word, or no dashes any more.
fn is_like_a_boundary(line: &str) -> bool {
    let is_dash = |c: &char| {
        matches!(c, '-' | '\u{ad}' | '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{fe58}' | '\u{fe63}' | '\u{ff0d}')
    };
    let upper = line.to_uppercase();
    let follows_dashes = |place: usize| upper[..place].trim_end().chars().rev().take_while(is_dash).count() >= 2;
    let is_marked = |word: &str| upper.match_indices(word).any(|(place, _)| follows_dashes(place));
    let begun = line.strip_prefix(DASHES).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()));
    begun
        || is_marked("BEGIN")
        || is_marked("END")
        || upper.starts_with("BEGIN CERTIFICATE")
        || upper.starts_with("END CERTIFICATE")
}

/// A label as a message may have it.
fn shown(label: &str) -> &str {
    label.get(..40).unwrap_or(label)
}

impl Fault {
    fn at(line: usize, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { line: Some(line), what: what.into(), remedy: remedy.into() }
    }

    /// What is wrong, and where.
    pub(crate) fn what(&self) -> String {
        match self.line {
            Some(line) => format!("line {line} {}", self.what),
            None => self.what.clone(),
        }
    }

    pub(crate) fn remedy(&self) -> &str {
        &self.remedy
    }
}

/// To follow the file's name.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what(), self.remedy)
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// Two certificates as PEM, and one key.
    fn made() -> (String, String, String) {
        let certificate = || {
            let key = KeyPair::generate().unwrap();
            (CertificateParams::default().self_signed(&key).unwrap().pem(), key.serialize_pem())
        };
        let ((one, _), (two, key)) = (certificate(), certificate());
        (unix(&one), unix(&two), unix(&key))
    }

    fn unix(text: &str) -> String {
        text.replace("\r\n", "\n")
    }

    fn taken(text: &str) -> usize {
        authorities(text.as_bytes()).unwrap_or_else(|fault| panic!("{fault}\n{text}")).len()
    }

    #[track_caller]
    fn refused(text: impl AsRef<[u8]>, line: Option<usize>, words: &str) {
        let text = text.as_ref();
        let fault = authorities(text).expect_err(&String::from_utf8_lossy(text));
        assert_eq!(fault.line, line, "{fault}");
        assert!(fault.to_string().contains(words), "{fault}");
        assert!(!fault.remedy.is_empty());
    }

    #[test]
    fn what_is_unambiguous_is_taken_whole() {
        let (one, two, _) = made();
        let plain = [one.as_str(), &two].concat();
        let whole = authorities(plain.as_bytes()).unwrap();
        let bom = "\u{feff}";
        let indented: String = plain.lines().map(|line| format!("  \t{line} \n")).collect();
        let one_line = |text: &str| text.lines().collect::<Vec<_>>().join(" ");
        for text in [
            format!("{}{two}", one.trim_end()),
            format!("{} {}", one.trim_end(), two.trim_end()),
            format!("{bom}{one}{bom}{two}"),
            format!("{bom}{}{bom}{two}", one.trim_end()),
            plain.replace('\n', "\r\n"),
            plain.replace('\n', "\r"),
            plain.replace('\n', "\n\n"),
            indented,
            format!("{} {}", one_line(&one), one_line(&two)),
            plain.replace("CERTIFICATE-----", "CERTIFICATE-----   "),
            plain.replace("BEGIN CERT", "BEGIN X509 CERT").replace("END CERT", "END X509 CERT"),
            format!(
                "# Trend Micro - Root - of 2020\n====\n{one}\nBag Attributes\n    friendlyName: two\n{two}\nThe end -- all\n"
            ),
            format!("Certificate:\n    Data:\n        Serial Number: 5a:00:11\n{one}subject=CN = two\n\n{two}"),
            format!("our old root CA has one two six\nGood\nRoot\nof\n2026\n{one}MIGHT be MILAN, or MINOR 2\n{two}"),
            format!("The Root Certification Authority of 2026\n{}\n{one}{two}", "=".repeat(40)),
            format!("# sha256 {}\n{one}# pin-sha256: \"{}=\"\n{two}", "9f86d081".repeat(8), "aB3/".repeat(10)),
            format!(
                "        00:c3:5a:99:6e:91:1c:d2:\n    localKeyID: 01 AB 23 CD 45 EF 67 01 AB 23 CD 45 EF 67\n{one}{two}"
            ),
        ] {
            assert_eq!(authorities(text.as_bytes()).unwrap_or_else(|fault| panic!("{fault}\n{text}")), whole, "{text}");
        }
    }

    #[test]
    fn what_is_not_is_refused_with_its_line() {
        let (one, two, key) = made();
        let lines = one.lines().count();
        let after = Some(lines + 1);
        refused("", None, "is empty");
        refused(" \r\n\u{a0}".trim_end_matches('\u{a0}'), None, "is empty");
        refused("\u{feff}\n", None, "is empty");
        refused("nothing of the kind\n", None, "holds no PEM certificate");
        refused([0x30, 0x82, 1, 2, 3], None, "is DER");
        refused([0xff, 0xfe, b'-', 0], None, "is UTF-16");
        refused([one.as_bytes(), &[0, 0]].concat(), after, "NUL");
        refused([one.as_bytes(), &[0xc3]].concat(), after, "no UTF-8");
        refused(&one[..one.len() / 2], Some(1), "the file is cut off");
        refused(format!("{}\n{two}", &one[..one.len() / 2]), Some(1), "where another begins");
        refused(two.replace("-----BEGIN CERTIFICATE-----\n", ""), Some(1), "is a piece of a block");
        refused(format!("{one}-----END CERTIFICATE-----\n"), after, "no beginning");
        refused(format!("{one}{}", two.replace("-----BEGIN", "----BEGIN")), after, "nearly, but not quite");
        refused(format!("{one}{}", two.replace("-----BEGIN", "\u{2013}BEGIN")), after.map(|line| line + 1), "piece");
        refused(format!("{one}{}", two.replace("-----BEGIN", "\u{2014}\u{2014}BEGIN")), after, "nearly, but not quite");
        refused(format!("{one}{}", two.replace("-----", "")), after, "nearly, but not quite");
        refused(format!("{one}# {two}"), after, "nearly, but not quite");
        refused(format!("{one}{}", two.to_lowercase()), after, "nearly, but not quite");
        refused(format!("{one}{}", two.replace("CERTIFICATE-----", "CERTIFICATE----")), after, "five dashes");
        refused(format!("{one}{}", two.replace("CERTIFICATE-----", "CERTIFICATE------")), after, "five dashes");
        refused(format!("{} # the first\n{two}", one.trim_end()), Some(lines), "text behind the end");
        refused(
            format!("{one}{}", two.replace("END CERTIFICATE", "END X509 CRL")),
            None.or(Some(lines * 2)),
            "ends `X509 CRL`",
        );
        refused(format!("{one}{}", two.replace('\n', "\n# ")), after.map(|line| line + 1), "is no Base64");
        refused(format!("{one}{}", two.replace("-----\n", "-----\n!")), after.map(|line| line + 1), "is no Base64");
        refused(format!("{one}{}", two.replace("-----\nMII", "-----\nMI")), after, "is cut short");
        refused(
            format!("{one}{}", two.replace("-----\nMII", "-----\nProc-Type: 4,ENCRYPTED\n\nMII")),
            after,
            "a colon",
        );
        refused(format!("{one}{key}"), after, "is a private key");
        // Its boundaries are lost, and its lines are not what they were.
        let body: String = two.lines().filter(|line| !line.starts_with('-')).collect();
        let wrapped = |width: usize, between: &str| {
            let chunks = body.as_bytes().chunks(width).map(|chunk| std::str::from_utf8(chunk).unwrap());
            chunks.collect::<Vec<_>>().join(between)
        };
        for piece in [
            wrapped(24, "\n"),
            wrapped(8, "\n"),
            wrapped(20, "\n\n"),
            wrapped(8, " "),
            format!("\"{}\"", wrapped(64, "\",\n\"")),
            format!("> {}", wrapped(24, "\n> ")),
            format!("  1  {}", wrapped(64, "\n  2  ")),
            format!("<X509Certificate>{body}</X509Certificate>"),
            format!("ca={body}"),
            wrapped(64, "\n").replace('+', "-").replace('/', "_"),
            wrapped(30, "\n")[31..].to_owned(),
        ] {
            refused(format!("{one}{piece}\n"), after, "is a piece of a block");
            refused(format!("{piece}\n{one}"), Some(1), "is a piece of a block");
        }
        let starred = two.replace("-----", "*****");
        refused(format!("{one}{starred}"), after.map(|line| line + 1), "is a piece of a block");
        for label in ["TRUSTED CERTIFICATE", "PKCS7", "X509 CRL", "CERTIFICATE REQUEST", "NONSENSE"] {
            let other = two.replace("CERTIFICATE", label);
            refused(format!("{one}{other}"), after, &format!("of another kind, `{label}`"));
        }
        let joined: String =
            [&one, &two].map(|text| text.lines().filter(|line| !line.starts_with('-')).collect::<String>()).concat();
        refused(format!("-----BEGIN CERTIFICATE-----\n{joined}\n-----END CERTIFICATE-----\n"), Some(1), "is cut short");
        refused("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", Some(1), "is empty");
    }

    #[test]
    fn no_cut_of_a_bundle_is_taken_for_less_than_all_of_it() {
        let (one, two, _) = made();
        let whole = [one.as_str(), &two].concat();
        for cut in 0..whole.len() {
            let text = &whole[..cut];
            let count = authorities(text.as_bytes()).map(|certificates| certificates.len());
            // Only where the second one is cut off without a rest, nobody can see it.
            let expected = if text.trim_end() == one.trim_end() {
                Ok(1)
            } else if text.trim_end() == whole.trim_end() {
                Ok(2)
            } else {
                Err(())
            };
            let rest_is_text = text.len() > one.len() && !text[one.len()..].contains("--B");
            if !rest_is_text {
                assert_eq!(count.map_err(|_| ()), expected, "{cut}");
            }
        }
    }

    #[test]
    fn a_key_file_has_one_key_that_can_be_read() {
        let (one, _, key) = made();
        let with = |text: &str| private_key(text.as_bytes()).map_err(|fault| fault.to_string());
        let parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
        for good in
            [key.clone(), format!("{one}{key}"), format!("{parameters}{key}"), format!("{}{one}", key.trim_end())]
        {
            assert!(with(&good).is_ok(), "{good}");
            assert_eq!(chain(good.as_bytes()).map(|chain| chain.len()).ok(), good.contains("CERTIFICATE").then_some(1));
        }
        for (bad, words) in [
            (format!("{key}{key}"), "a second private key"),
            (key.replace("PRIVATE", "ENCRYPTED PRIVATE"), "with a passphrase"),
            (key.replace("KEY-----\nM", "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES\n\nM"), "with a passphrase"),
            (key.replace("PRIVATE KEY", "OPENSSH PRIVATE KEY"), "of a kind that cannot be used"),
            (key.replace("PRIVATE KEY", "PUBLIC KEY"), "of another kind, `PUBLIC KEY`"),
            (one.clone(), "holds no PEM private key"),
            (String::new(), "is empty"),
        ] {
            assert!(with(&bad).unwrap_err().contains(words), "{words}: {:?}", with(&bad).unwrap_err());
        }
        assert_eq!(taken(&one), 1);
    }
}
