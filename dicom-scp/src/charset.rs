//! Specific Character Set (0008,0005): PS3.3 C.12.1.1.2, PS3.5 6.1 and annexes H, I, J, K.
//!
//! Decodes every defined term, with and without ISO 2022 code extensions, to Unicode. Damaged text never fails: what cannot be
//! decoded becomes U+FFFD, because an index with one odd letter is better than no index. We only ever write UTF-8 (`ISO_IR 192`).
//! Must not know attributes other than as "person name or not".

use encoding_rs::Encoding;
use std::sync::OnceLock;

/// A decoded (0008,0005): the initial sets plus whether escape sequences may switch them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CharacterSet {
    initial: Initial,
    extensions: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Initial {
    /// Absent, empty or `ISO_IR 6`. Bytes above 7F are wrong here; they are taken as UTF-8 if they are, else as Latin-1.
    Ascii,
    /// A term we do not know, treated the same way.
    Unknown,
    Single(Single),
    /// JIS X 0201: romaji below, half-width katakana above.
    JisX0201,
    Utf8,
    Gb18030,
    Gbk,
}

/// The single-byte sets: 94 or 96 characters above A0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Single {
    Latin1,
    Latin2,
    Latin3,
    Latin4,
    Cyrillic,
    Arabic,
    Greek,
    Hebrew,
    Latin5,
    Latin9,
    Thai,
}

/// What G1 (bytes A0 to FF) currently means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum G1 {
    None,
    Single(Single),
    Katakana,
    KsX1001,
    Gb2312,
}

/// What G0 (bytes 21 to 7E) currently means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum G0 {
    Ascii,
    JisX0208,
    JisX0212,
    KsX1001,
    Gb2312,
}

const ESCAPE: u8 = 0x1b;

impl CharacterSet {
    /// The default repertoire, `ISO_IR 6`.
    pub const DEFAULT: CharacterSet = CharacterSet { initial: Initial::Ascii, extensions: false };
    /// The term for [`Self::DEFAULT`] where the attribute shall not be absent.
    pub const DEFAULT_TERM: &'static str = "ISO_IR 6";
    /// `ISO_IR 192`: the only set we write.
    pub const UTF_8: CharacterSet = CharacterSet { initial: Initial::Utf8, extensions: false };
    /// The defined term of [`Self::UTF_8`].
    pub const UTF_8_TERM: &'static str = "ISO_IR 192";

    /// Parses the value field of (0008,0005). Unknown terms are tolerated; spelling variants met in the field (`ISO-IR 100`,
    /// `ISO_IR_100`, `ISO 2022-IR 100`, lower case) are understood.
    pub fn parse(value: &[u8]) -> CharacterSet {
        let text = String::from_utf8_lossy(value);
        let mut terms = text.split('\\').map(normalize);
        let initial = terms.next().map_or(Initial::Ascii, |t| initial(&t));
        let extensions = terms.next().is_some() || text.to_ascii_uppercase().contains("2022");
        // PS3.3 C.12.1.1.2: the sets of a single value do not take code extensions. A stray second value changes nothing.
        let extensions = extensions && !matches!(initial, Initial::Utf8 | Initial::Gb18030 | Initial::Gbk);
        CharacterSet { initial, extensions }
    }

    /// Whether text in this set is UTF-8, plain ASCII included.
    pub fn is_utf8(&self) -> bool {
        self.initial == Initial::Utf8
    }

    /// Whether bytes mean the same in every set: ASCII that switches to nothing else.
    pub(crate) fn is_plain(bytes: &[u8]) -> bool {
        bytes.is_ascii() && !bytes.contains(&ESCAPE)
    }

    /// Decodes a text value, all values of it with their delimiters. `person_name` makes `^` and `=` reset code extensions as
    /// PS3.5 6.1.2.5.3 wants for VR PN.
    pub fn decode(&self, bytes: &[u8], person_name: bool) -> String {
        if Self::is_plain(bytes) {
            return String::from_utf8_lossy(bytes).into_owned();
        }
        match self.initial {
            Initial::Utf8 => String::from_utf8_lossy(bytes).into_owned(),
            Initial::Gb18030 => encoding_rs::GB18030.decode_without_bom_handling(bytes).0.into_owned(),
            Initial::Gbk => encoding_rs::GBK.decode_without_bom_handling(bytes).0.into_owned(),
            Initial::Ascii | Initial::Unknown if !bytes.contains(&ESCAPE) => decode_undeclared(bytes),
            _ => Decoder::new(self, person_name).run(bytes),
        }
    }
}

impl Default for CharacterSet {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Letters and digits only, without the "2022": `ISO 2022 IR 100`, `ISO_IR 100` and `ISO-IR 100` all become `ISOIR100`.
fn normalize(term: &str) -> String {
    let term: String = term.chars().filter(char::is_ascii_alphanumeric).collect();
    term.to_ascii_uppercase().replace("ISO2022IR", "ISOIR")
}

fn initial(term: &str) -> Initial {
    match term {
        "" | "ISOIR6" => Initial::Ascii,
        "ISOIR100" => Initial::Single(Single::Latin1),
        "ISOIR101" => Initial::Single(Single::Latin2),
        "ISOIR109" => Initial::Single(Single::Latin3),
        "ISOIR110" => Initial::Single(Single::Latin4),
        "ISOIR144" => Initial::Single(Single::Cyrillic),
        "ISOIR127" => Initial::Single(Single::Arabic),
        "ISOIR126" => Initial::Single(Single::Greek),
        "ISOIR138" => Initial::Single(Single::Hebrew),
        "ISOIR148" => Initial::Single(Single::Latin5),
        "ISOIR203" => Initial::Single(Single::Latin9),
        "ISOIR166" => Initial::Single(Single::Thai),
        "ISOIR13" => Initial::JisX0201,
        "ISOIR192" | "UTF8" => Initial::Utf8,
        "GB18030" => Initial::Gb18030,
        "GBK" => Initial::Gbk,
        // Multi-byte sets have no meaning as the initial set; escape sequences tell what follows.
        "ISOIR87" | "ISOIR159" | "ISOIR149" | "ISOIR58" => Initial::Ascii,
        _ => Initial::Unknown,
    }
}

fn decode_undeclared(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|b| char::from(*b)).collect(),
    }
}

/// The ISO 2022 state machine of PS3.5 6.1.2.5.
struct Decoder {
    set: CharacterSet,
    person_name: bool,
    g0: G0,
    g1: G1,
    out: String,
}

impl Decoder {
    fn new(set: &CharacterSet, person_name: bool) -> Self {
        let mut decoder = Decoder { set: *set, person_name, g0: G0::Ascii, g1: G1::None, out: String::new() };
        decoder.reset();
        decoder
    }

    fn reset(&mut self) {
        self.g0 = G0::Ascii;
        self.g1 = match self.set.initial {
            Initial::Single(single) => G1::Single(single),
            Initial::JisX0201 => G1::Katakana,
            _ => G1::None,
        };
    }

    fn run(mut self, mut rest: &[u8]) -> String {
        while let Some((&byte, tail)) = rest.split_first() {
            rest = if byte == ESCAPE { self.escape(tail) } else { self.character(byte, tail) };
        }
        self.out
    }

    /// Consumes one escape sequence (after its ESC) and designates a set. Unknown sequences are dropped.
    fn escape<'a>(&mut self, tail: &'a [u8]) -> &'a [u8] {
        use Single::*;
        const SEQUENCES: &[(&[u8], Option<G0>, Option<G1>)] = &[
            (b"(B", Some(G0::Ascii), None),
            (b"(J", Some(G0::Ascii), None),
            (b"$B", Some(G0::JisX0208), None),
            (b"$@", Some(G0::JisX0208), None),
            (b"$(D", Some(G0::JisX0212), None),
            (b"$(C", Some(G0::KsX1001), None),
            (b"$A", Some(G0::Gb2312), None),
            (b"$)C", None, Some(G1::KsX1001)),
            (b"$)A", None, Some(G1::Gb2312)),
            (b")I", None, Some(G1::Katakana)),
            (b"-A", None, Some(G1::Single(Latin1))),
            (b"-B", None, Some(G1::Single(Latin2))),
            (b"-C", None, Some(G1::Single(Latin3))),
            (b"-D", None, Some(G1::Single(Latin4))),
            (b"-L", None, Some(G1::Single(Cyrillic))),
            (b"-G", None, Some(G1::Single(Arabic))),
            (b"-F", None, Some(G1::Single(Greek))),
            (b"-H", None, Some(G1::Single(Hebrew))),
            (b"-M", None, Some(G1::Single(Latin5))),
            (b"-b", None, Some(G1::Single(Latin9))),
            (b"-T", None, Some(G1::Single(Thai))),
        ];
        for (sequence, g0, g1) in SEQUENCES {
            if let Some(rest) = tail.strip_prefix(*sequence) {
                self.g0 = g0.unwrap_or(self.g0);
                self.g1 = g1.unwrap_or(self.g1);
                return rest;
            }
        }
        // ISO 2022: intermediate bytes 20-2F, then one final byte.
        let intermediates = tail.iter().take_while(|b| (0x20..0x30).contains(*b)).count();
        tail.get(intermediates + 1..).unwrap_or_default()
    }

    fn character<'a>(&mut self, byte: u8, tail: &'a [u8]) -> &'a [u8] {
        if byte < 0x21 || byte == 0x7f {
            // C0 and space. Line ends reset the sets (PS3.5 6.1.2.5.3).
            if matches!(byte, b'\n' | b'\r' | 0x0c | b'\t') {
                self.reset();
            }
            self.out.push(char::from(byte));
            return tail;
        }
        if byte < 0x80 { self.low(byte, tail) } else { self.high(byte, tail) }
    }

    fn low<'a>(&mut self, byte: u8, tail: &'a [u8]) -> &'a [u8] {
        if self.g0 == G0::Ascii {
            if byte == b'\\' || self.person_name && matches!(byte, b'^' | b'=') {
                self.reset();
            }
            self.out.push(char::from(byte));
            return tail;
        }
        let Some((&second, rest)) = tail.split_first() else {
            self.out.push(char::REPLACEMENT_CHARACTER);
            return tail;
        };
        if !(0x21..0x7f).contains(&second) {
            self.out.push(char::REPLACEMENT_CHARACTER);
            return tail;
        }
        let (a, b) = (byte | 0x80, second | 0x80);
        match self.g0 {
            G0::JisX0208 => self.push(encoding_rs::EUC_JP, &[a, b]),
            G0::JisX0212 => self.push(encoding_rs::EUC_JP, &[0x8f, a, b]),
            G0::KsX1001 => self.push(encoding_rs::EUC_KR, &[a, b]),
            G0::Gb2312 | G0::Ascii => self.push(encoding_rs::GBK, &[a, b]),
        }
        rest
    }

    fn high<'a>(&mut self, byte: u8, tail: &'a [u8]) -> &'a [u8] {
        match self.g1 {
            G1::None => self.out.push(char::from(byte)),
            G1::Single(single) => self.out.push(single.decode(byte)),
            G1::Katakana => self.out.push(katakana(byte)),
            G1::KsX1001 | G1::Gb2312 => {
                let encoding = if self.g1 == G1::KsX1001 { encoding_rs::EUC_KR } else { encoding_rs::GBK };
                return match tail.split_first() {
                    Some((&second, rest)) if second >= 0xa1 => {
                        self.push(encoding, &[byte, second]);
                        rest
                    }
                    _ => {
                        self.out.push(char::REPLACEMENT_CHARACTER);
                        tail
                    }
                };
            }
        }
        tail
    }

    fn push(&mut self, encoding: &'static Encoding, bytes: &[u8]) {
        self.out.push_str(&encoding.decode_without_bom_handling(bytes).0);
    }
}

/// JIS X 0201, upper half: half-width katakana.
fn katakana(byte: u8) -> char {
    match byte {
        0xa1..=0xdf => char::from_u32(0xff61 + u32::from(byte - 0xa1)).unwrap_or(char::REPLACEMENT_CHARACTER),
        _ => char::REPLACEMENT_CHARACTER,
    }
}

impl Single {
    fn decode(self, byte: u8) -> char {
        // The WHATWG tables put Windows letters at 80-9F where ISO 8859 has control characters.
        if byte < 0xa0 || self == Single::Latin1 {
            return char::from(byte);
        }
        self.table()[usize::from(byte - 0xa0)]
    }

    fn encoding(self) -> &'static Encoding {
        match self {
            Single::Latin1 | Single::Latin5 => encoding_rs::WINDOWS_1254,
            Single::Latin2 => encoding_rs::ISO_8859_2,
            Single::Latin3 => encoding_rs::ISO_8859_3,
            Single::Latin4 => encoding_rs::ISO_8859_4,
            Single::Cyrillic => encoding_rs::ISO_8859_5,
            Single::Arabic => encoding_rs::ISO_8859_6,
            Single::Greek => encoding_rs::ISO_8859_7,
            Single::Hebrew => encoding_rs::ISO_8859_8,
            Single::Latin9 => encoding_rs::ISO_8859_15,
            Single::Thai => encoding_rs::WINDOWS_874,
        }
    }

    fn table(self) -> &'static [char; 96] {
        static TABLES: [OnceLock<[char; 96]>; 11] = [const { OnceLock::new() }; 11];
        TABLES[self as usize].get_or_init(|| {
            std::array::from_fn(|i| {
                let byte = [0xa0 + i as u8];
                let decoded = self.encoding().decode_without_bom_handling(&byte).0;
                decoded.chars().next().unwrap_or(char::REPLACEMENT_CHARACTER)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(term: &str, bytes: &[u8]) -> String {
        CharacterSet::parse(term.as_bytes()).decode(bytes, true)
    }

    // The examples of PS3.5 annexes H.3, I.2, J.1 to J.4, K.2, L and PS3.3 C.12.1.1.2.

    #[test]
    fn single_byte_sets() {
        assert_eq!(decode("ISO_IR 100", b"Buc^J\xe9r\xf4me"), "Buc^Jérôme");
        assert_eq!(decode("ISO_IR 101", b"Wa\xb3\xeasa"), "Wałęsa");
        assert_eq!(decode("ISO_IR 144", b"\xbb\xee\xdace\xdc\xd1yp\xd3"), "Люкceмбypг");
        assert_eq!(decode("ISO_IR 126", b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2"), "Διονυσιος");
        assert_eq!(decode("ISO_IR 127", b"\xe2\xc8\xc7\xe6\xea^\xe4\xe6\xd2\xc7\xd1"), "قباني^لنزار");
        assert_eq!(decode("ISO_IR 138", b"\xf9\xf8\xe5\xef^\xe3\xe1\xe5\xf8\xe4"), "שרון^דבורה");
        assert_eq!(decode("ISO_IR 148", b"\xc7avu\xfeo\xf0lu"), "Çavuşoğlu");
        assert_eq!(decode("ISO_IR 203", b"\xa4"), "€");
        assert_eq!(decode("ISO_IR 166", b"\xca\xc1\xaa\xd2\xc2"), "สมชาย");
        assert_eq!(decode("ISO_IR 109", b"\xa6"), "Ĥ");
        assert_eq!(decode("ISO_IR 110", b"\xa2"), "ĸ");
        assert_eq!(decode("ISO_IR 13", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3"), "ﾔﾏﾀﾞ^ﾀﾛｳ");
    }

    #[test]
    fn multi_byte_sets_without_extensions() {
        assert_eq!(decode("ISO_IR 192", "Wang^XiaoDong=王^小东=".as_bytes()), "Wang^XiaoDong=王^小东=");
        assert_eq!(decode("GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab="), "Wang^XiaoDong=王^小东=");
        assert_eq!(decode("GBK", b"\xcd\xf5^\xd0\xa1\xb6\xab"), "王^小东");
    }

    #[test]
    fn japanese_with_code_extensions() {
        let bytes = b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B";
        assert_eq!(decode("\\ISO 2022 IR 87", bytes), "Yamada^Tarou=山田^太郎=やまだ^たろう");
        let bytes = b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J";
        assert_eq!(decode("ISO 2022 IR 13\\ISO 2022 IR 87", bytes), "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎");
        assert_eq!(decode("\\ISO 2022 IR 159", b"\x1b$(D0!\x1b(B"), "丂");
    }

    #[test]
    fn korean_and_chinese_with_code_extensions() {
        let bytes = b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf";
        assert_eq!(decode("\\ISO 2022 IR 149", bytes), "Hong^Gildong=洪^吉洞=홍^길동");
        let bytes = b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=";
        assert_eq!(decode("\\ISO 2022 IR 58", bytes), "Zhang^XiaoDong=张^小东=");
    }

    #[test]
    fn delimiters_reset_the_designation() {
        // Cyrillic is designated in the first component only; after ^ the bytes mean Latin-1 again.
        assert_eq!(decode("ISO 2022 IR 100\\ISO 2022 IR 144", b"\x1b-L\xbb^\xe9"), "Л^é");
        assert_eq!(decode("ISO 2022 IR 100\\ISO 2022 IR 144", b"\x1b-L\xbb\\\xe9"), "Л\\é");
    }

    #[test]
    fn damage_is_survived() {
        assert_eq!(decode("", "Müller".as_bytes()), "Müller");
        assert_eq!(decode("", b"M\xfcller"), "Müller");
        assert_eq!(decode("NONSENSE", b"M\xfcller"), "Müller");
        assert_eq!(decode("\\ISO 2022 IR 87", b"\x1b$B;"), "\u{fffd}");
        assert_eq!(decode("\\ISO 2022 IR 87", b"\x1b"), "");
        assert_eq!(decode("ISO_IR_100", b"\xe9"), "é");
        assert_eq!(decode("iso-ir 100 ", b"\xe9"), "é");
    }
}
