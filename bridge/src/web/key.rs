//! Forms that a patient's key signs. The key is with the patient: in a passkey, in a wallet or on paper; the page's script (`web/key/`) has it sign and fills in
//! account and signature. Without a script both can be filled in by hand.
//!
//! Must not know what is signed, nor any key.

use axum::http::{HeaderMap, header};
use maud::{Markup, html};

use crate::decide::TypedData;

/// Fields that the script fills in.
pub(super) const ACCOUNT_FIELD: &str = "account";
pub(super) const SIGNATURE_FIELD: &str = "signature";

/// What is signed.
pub(super) enum Signed<'a> {
    /// A text (EIP-191, `personal_sign`).
    Text(&'a str),
    /// A text and the code in the field `code`, without gaps.
    Code(&'a str),
    /// Structured data (EIP-712) that the key of an account must sign.
    Typed(&'a TypedData, &'a str),
}

/// Where a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// In a passkey that is made for it.
    New,
    /// In a passkey.
    Passkey,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Passkey => "passkey",
        }
    }
}

/// A form that is sent with a signature. `site` is what a passkey is called by; `ways` are the buttons, the first of which is meant.
pub(super) fn form(path: &str, site: &str, signed: &Signed<'_>, fields: &Markup, ways: &[(Way, &str)]) -> Markup {
    let (kind, text, signer) = match signed {
        Signed::Text(text) => ("text", (*text).to_owned(), None),
        Signed::Code(text) => ("code", (*text).to_owned(), None),
        Signed::Typed(data, signer) => ("typed", serde_json::to_string(data).unwrap_or_default(), Some(*signer)),
    };
    html! {
        form class="stack" method="post" action=(path) autocomplete="off" data-key=(kind) data-text=(text) data-signer=[signer] data-site=(site) {
            (fields)
            div class="stack" hidden data-scripted {
                @for (number, (way, words)) in ways.iter().enumerate() {
                    button type="button" class=[(number == 0).then_some("primary")] data-by=(way.name()) { (words) }
                }
                button type="button" hidden data-by="wallet" { "Use the wallet in this browser" }
                details {
                    summary { "I have my key on paper" }
                    div class="stack" {
                        label { "Key on paper" input type="password" data-paper spellcheck="false" autocomplete="off"; }
                        button type="button" data-by="paper" { "Use this key" }
                    }
                }
            }
            p class="said" role="status" data-said {}
            (by_hand(signed, &text))
        }
    }
}

/// For keys that are elsewhere, and browsers without scripts.
fn by_hand(signed: &Signed<'_>, text: &str) -> Markup {
    html! {
        details data-by-hand {
            summary { "Sign with something else" }
            div class="stack" {
                @match signed {
                    Signed::Text(_) => p { "Sign this text with your key (" code { "personal_sign" } ") and fill in what comes out." },
                    Signed::Code(_) => p { "Sign this text, followed by the code in capital letters without gaps (" code { "personal_sign" } "), and fill in what comes out." },
                    Signed::Typed(..) => p { "Sign this with your key (" code { "eth_signTypedData_v4" } ") and fill in what comes out." },
                }
                label { "To be signed" textarea readonly rows="5" spellcheck="false" { (text) } }
                label { "Account" input name=(ACCOUNT_FIELD) spellcheck="false" placeholder="0x…"; }
                label { "Signature" input name=(SIGNATURE_FIELD) spellcheck="false" placeholder="0x…"; }
                button { "Send" }
            }
        }
    }
}

/// The name, and port, by which somebody calls this server.
pub(super) fn host(headers: &HeaderMap, behind_proxy: bool) -> Option<String> {
    let named = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let forwarded = named("x-forwarded-host").filter(|_| behind_proxy);
    forwarded.or_else(|| named(header::HOST.as_str())).map(str::to_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nothing_that_is_signed_leaves_its_attribute() {
        let made = form("/x", "\"><b>", &Signed::Text("a\"\nb<c"), &html! {}, &[(Way::Passkey, "Go")]).into_string();
        assert!(
            made.contains("data-text=\"a&quot;\nb&lt;c\"") && made.contains("data-site=\"&quot;&gt;&lt;b&gt;\""),
            "{made}"
        );
        assert!(!made.contains("required"), "a field that a script fills in is not asked for");
    }

    #[test]
    fn the_name_of_the_server_is_the_clients_own() {
        let headers = HeaderMap::from_iter([
            (header::HOST, "127.0.0.1:80".parse().unwrap()),
            (header::HeaderName::from_static("x-forwarded-host"), "Pacs.example".parse().unwrap()),
        ]);
        assert_eq!(host(&headers, true).as_deref(), Some("pacs.example"));
        assert_eq!(host(&headers, false).as_deref(), Some("127.0.0.1:80"));
        assert_eq!(host(&HeaderMap::new(), true), None);
    }
}
