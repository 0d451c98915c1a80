//! What the contracts' refusals mean, for the person who can do something about it. Pure.

use alloy::sol_types::SolInterface as _;
use contracts::{Consent, KeyBindings, Sources, Studies};

/// What the custom error in return data means; none when it is no error of the Registry, Consent or KeyBindings.
pub(super) fn words(data: &[u8]) -> Option<String> {
    let consent = Consent::ConsentErrors::abi_decode(data).ok().map(of_consent);
    let studies = || Studies::StudiesErrors::abi_decode(data).ok().map(of_studies);
    let sources = || Sources::SourcesErrors::abi_decode(data).ok().and_then(of_sources);
    let key_bindings = || KeyBindings::KeyBindingsErrors::abi_decode(data).ok().and_then(of_key_bindings);
    consent.or_else(studies).or_else(sources).or_else(key_bindings)
}

/// The errors that Consent does not have as well.
fn of_key_bindings(error: KeyBindings::KeyBindingsErrors) -> Option<String> {
    use KeyBindings::KeyBindingsErrors as E;
    Some(match error {
        E::SpkiLength(e) => format!("a public key of {} bytes: that of a P-256 key has 91", e.length),
        E::ProofLength(e) => format!("a proof of {} bytes: it must have 64", e.length),
        E::BadEnd(e) => format!("a binding until {} (seconds since 1970) would be over already", e.notAfter),
        _ => return None,
    })
}

fn of_consent(error: Consent::ConsentErrors) -> String {
    use Consent::ConsentErrors as E;
    match error {
        E::BadSignature(e) => bad_signature(e.signer),
        E::DeadlinePassed(e) => deadline_passed(e.deadline),
        E::SeqNotRising(e) => not_rising(e.current, e.given),
        E::NotSource(e) => not_source(e.sender),
        E::ZeroAddress(_) => "the zero address can be no grantee".into(),
        E::EncryptionKeyLength(e) => format!("an OpenPGP key of {} bytes: it must have between 1 and 1024", e.length),
        E::NoMode(_) => "neither preview nor full access was named".into(),
        E::BadPeriod(e) => {
            format!(
                "the period from {} to {} (seconds since 1970) is over, or ends before it begins",
                e.notBefore, e.notAfter
            )
        }
        E::NothingRequested(e) => {
            format!("{} has no open request for study {}; to take away what was granted, revoke", e.grantee, e.studyId)
        }
        E::NotAllowed(e) => format!("nothing of study {} is allowed to {} now", e.studyId, e.grantee),
        E::EnvelopeLength(e) => format!("an envelope of {} bytes: it must have between 1 and 16384", e.length),
        E::BadEnvelopeEnd(e) => {
            format!("an envelope until {} (seconds since 1970) must end later than now and within 30 days", e.until)
        }
        E::NoReason(_) => "breaking the glass needs a reason".into(),
        E::BadEmergency(e) => format!(
            "an emergency until {} (seconds since 1970) is refused: it must end later than now and than the one before, and within a day",
            e.until
        ),
        E::NotApprover(e) if e.approver.is_zero() => {
            format!("source {} demands that a second operator approves breaking the glass", e.source)
        }
        E::NotApprover(e) => format!("{} is not another operator of source {}", e.approver, e.source),
    }
}

fn of_studies(error: Studies::StudiesErrors) -> String {
    use Studies::StudiesErrors as E;
    match error {
        E::BadSignature(e) => bad_signature(e.signer),
        E::DeadlinePassed(e) => deadline_passed(e.deadline),
        E::SeqNotRising(e) => not_rising(e.current, e.given),
        E::NotSource(e) => not_source(e.sender),
        E::StudyUnknown(e) => format!("the ledger knows no study {}", e.studyId),
        E::StudyDead(e) => format!("the owner of study {} has ended it", e.studyId),
        E::StudyExists(e) => format!("study {} is defined already", e.studyId),
        E::NotStudySource(e) => format!("study {} belongs to source {}", e.studyId, e.source),
        E::NotTheGuardians(e) => format!("these are not the guardians that the owner of study {} named", e.studyId),
        E::UnsoundGuardians(e) => {
            format!("the guardians of study {} cannot act: too many, or an impossible threshold or delay", e.studyId)
        }
        E::TooFewGuardians(e) => format!("{} guardians signed, {} must", e.signed, e.threshold),
        E::NoRecovery(e) => format!("no recovery of study {} is under way", e.studyId),
        E::RecoveryTooEarly(e) => format!(
            "the owner of study {} may object until {} (seconds since 1970); complete the recovery then",
            e.studyId, e.readyAt
        ),
        E::VersionNotRising(e) => format!("manifest version {} does not follow version {}", e.given, e.current),
        E::ZeroValue(_) => "the zero study id or the zero owner".into(),
    }
}

fn of_sources(error: Sources::SourcesErrors) -> Option<String> {
    use Sources::SourcesErrors as E;
    Some(match error {
        E::NotAdmin(e) => format!("account {} is not the administrator of the consortium", e.caller),
        E::AlreadyAdmitted(e) => format!("source {} was admitted before", e.source),
        E::NotAdmitted(e) => format!("{} was never admitted as a source; the consortium must admit it first", e.source),
        E::AlreadySuspended(e) => format!("source {} is suspended already", e.source),
        E::NotSuspended(e) => format!("source {} is not suspended", e.source),
        E::NotDefined(e) => format!("source {} has not defined itself", e.source),
        E::KeyInUse(e) => format!("account {} acts for source {} already", e.key, e.source),
        E::EndpointLength(e) => format!("an endpoint of {} bytes is refused", e.length),
        _ => return None,
    })
}

fn bad_signature(signer: impl std::fmt::Display) -> String {
    format!("this is not the signature of {signer}, whose word is needed: sign with the key of that account")
}

fn deadline_passed(deadline: u64) -> String {
    format!("the signature was good until {deadline} (seconds since 1970); sign anew")
}

fn not_rising(current: u32, given: u32) -> String {
    format!("this was said already or was overtaken: it has number {given}, and number {current} was used; sign anew")
}

fn not_source(sender: impl std::fmt::Display) -> String {
    format!("account {sender} does not act for an active source of this consortium")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use alloy::primitives::{Address, B256};
    use alloy::sol_types::SolError as _;

    #[test]
    fn refusals_say_who_can_do_what() {
        let signer = Address::repeat_byte(7);
        let text = words(&Consent::BadSignature { signer }.abi_encode()).unwrap();
        assert!(text.contains(&signer.to_string()), "{text}");
        let text = words(&Consent::SeqNotRising { current: 4, given: 3 }.abi_encode()).unwrap();
        assert!(text.contains("sign anew"), "{text}");
        let text = words(&Studies::StudyUnknown { studyId: B256::ZERO }.abi_encode()).unwrap();
        assert!(text.contains("knows no study"), "{text}");
        assert!(words(&Sources::NotAdmin { caller: signer }.abi_encode()).unwrap().contains("administrator"));
        assert!(words(&KeyBindings::BadEnd { notAfter: 7 }.abi_encode()).unwrap().contains("until 7"));
        assert_eq!(words(&[1, 2, 3, 4]), None);
    }
}
