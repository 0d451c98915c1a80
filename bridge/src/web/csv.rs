//! Tables as text for spreadsheets (RFC 4180). Nothing that somebody else chose can become a formula there. Pure.

/// What spreadsheets take for the beginning of a formula, also behind what they pass over.
const FORMULA: [char; 4] = ['=', '+', '-', '@'];

/// A line. Every cell is in quotes, so that whatever is in it is in it.
pub(super) fn line<'c>(cells: impl IntoIterator<Item = &'c str>) -> String {
    let cells: Vec<String> = cells.into_iter().map(cell).collect();
    format!("{}\r\n", cells.join(","))
}

fn cell(text: &str) -> String {
    let is_passed_over = |c: char| c.is_whitespace() || c.is_control() || c == '\u{feff}' || c == '"' || c == '\'';
    let begins = text.trim_start_matches(is_passed_over);
    // Full-width forms are read as the plain ones are.
    let is_formula =
        begins.starts_with(FORMULA) || begins.starts_with(['\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}']);
    // A tab, too, has been known to move what follows into a cell of its own.
    let is_odd = is_formula || text.starts_with(|c: char| c.is_control());
    format!("\"{}{}\"", if is_odd { "'" } else { "" }, text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_becomes_a_formula_or_another_cell() {
        assert_eq!(line(["a", "b c", ""]), "\"a\",\"b c\",\"\"\r\n");
        assert_eq!(line(["a\"b", "c,d", "e\r\nf"]), "\"a\"\"b\",\"c,d\",\"e\r\nf\"\r\n");
        for hostile in [
            "=1+1",
            "+1",
            "-1",
            "@SUM(A1)",
            "\t=1",
            " =1",
            "\u{feff}=1",
            "\r=1",
            "\"=1",
            "'=1",
            "\u{ff1d}1",
            "\u{a0}=1",
            "\tx",
        ] {
            assert!(cell(hostile).starts_with("\"'"), "{hostile:?}: {}", cell(hostile));
        }
        for plain in ["2026-12-01T00:00:00.000Z", "CT1 (127.0.0.1)", "1.2.840", "peer:A=B", "0x12"] {
            assert_eq!(cell(plain), format!("\"{plain}\""));
        }
    }
}
