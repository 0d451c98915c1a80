// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ISigned} from "./ISigned.sol";

/// @title Consent: who may see which study, for what and how long
/// @notice A *grantee* is the identity of a source, or any other account (a research key, say). It asks; the study's owner allows,
/// denies or revokes by EIP-712 messages that anybody may send. Per study and grantee there is one grant and one request at most: a
/// newer one replaces the older.
///
/// Messages (domain name "PACS Bridge Consent", version "1", chain id, this contract):
/// - `Allow(bytes32 studyId,address grantee,bytes32 series,uint8 mode,uint64 notBefore,uint64 notAfter,uint16 purpose,bytes32
///   notes,bytes32 encryptionKey,uint32 seq,uint64 deadline)`
/// - `Deny(bytes32 studyId,address grantee,uint16 reason,bytes32 notes,uint32 seq,uint64 deadline)`
/// - `Revoke(bytes32 studyId,address grantee,uint32 seq,uint64 deadline)`
/// - `ApproveEmergency(bytes32 studyId,address source,address operator,uint16 reason,bytes32 notes,uint64 until,uint64 deadline)`
///
/// `seq` rises strictly per (study, grantee) over allow, deny and revoke together: what was overtaken can never be played later,
/// so what was revoked stays revoked until the owner signs a *newer* allow. `deadline` is the last second at which a message is
/// good; `notBefore` and `notAfter` are the first and the last second of a grant.
///
/// `encryptionKey` is the keccak-256 of the grantee's OpenPGP key. A request carries the key itself in its event; the owner signs
/// its hash, and payload keys go to that key alone, so nobody can put another key in between.
///
/// `notes` is a salted hash of what was said in words, which stays off the chain. `purpose` and `reason` are numbers of a table
/// outside (see `messages.rs`); zero is "not stated".
///
/// A study's new owner inherits the grants: they are the patient's decisions, and the patient stays the same when a key is
/// exchanged. Whatever the former owner signed and nobody sent is void, because signatures are checked against today's owner.
/// Numbers go on rising over the change.
///
/// *Break-glass*: a source may let itself in, for `EMERGENCY_S_MAX` seconds at most, by saying so here. It is reported as an
/// emergency and never as a grant; a tombstone beats it; the identity of the source may demand that a second operator approves.
///
/// *Envelopes*: bridges hand keys over between themselves. A site that cannot reach the study's source asks for them here instead, with an
/// OpenPGP key that it made for this one answer; the source answers with an envelope that takes both this key and the one of the
/// grant to open. Once the one-time key is destroyed, nobody opens the envelope any more, though its bytes stay for ever.
///
/// Inconvenient facts:
/// - Who asks whom for which study, when and for what is public to every member of the network, as pseudonyms.
/// - Any account may ask. A request costs the asker gas and the owner nothing; bridges show requests of strangers apart.
/// - A grant for one series replaces a grant for another series of the same study.
/// - This contract hinders nobody from reading. It says what was decided; bridges that hold bytes and keys act on it.
/// - A revocation cannot fetch back what was delivered, nor end an emergency. That ends by itself.
/// - This contract cannot tell an envelope from nonsense. It refuses envelopes to whomever nothing is granted, and asking likewise.
/// - Block times decide about deadlines, and the network's producers set them within seconds.
interface IConsent is ISigned {
    /// @notice What a grantee may see.
    enum Mode {
        None,
        Preview,
        Full
    }

    /// @notice What became of the newest request.
    enum Request {
        None,
        Open,
        Accepted,
        Denied
    }

    /// @notice What the owner said last about access.
    enum Decision {
        None,
        Allowed,
        Revoked
    }

    /// @notice The state of a study towards a grantee, in the words of the PCIM paper.
    enum Trace {
        /// @notice Nothing was asked or granted, or what was granted is over.
        NotAuthorised,
        /// @notice A request waits for the owner.
        Requested,
        /// @notice The newest request was denied.
        Denied,
        /// @notice Access was granted and has not begun.
        Accepted,
        /// @notice Access is granted now.
        Authorised,
        /// @notice Access was taken away, or the study was.
        Removed
    }

    /// @notice What the owner allows, as signed. `series` zero is the whole study, else a salted hash of the series.
    struct Allowance {
        bytes32 studyId;
        address grantee;
        bytes32 series;
        Mode mode;
        uint64 notBefore;
        uint64 notAfter;
        uint16 purpose;
        bytes32 notes;
        bytes32 encryptionKey;
        uint32 seq;
        uint64 deadline;
    }

    /// @notice Why a source lets itself in, for how long, and who of it agreed.
    struct Emergency {
        bytes32 studyId;
        uint16 reason;
        bytes32 notes;
        uint64 until;
        address approver;
        uint64 deadline;
    }

    /// @notice What is recorded about (study, grantee). `requests` counts requests, `reason` is of the last denial.
    struct Grant {
        uint32 seq;
        uint32 requests;
        uint64 notBefore;
        uint64 notAfter;
        uint16 purpose;
        uint16 reason;
        Mode mode;
        Decision decision;
        Request request;
        bytes32 series;
        bytes32 encryptionKey;
        bytes32 requestedKey;
    }

    /// @notice Request number `number` of `grantee`: it wants `mode` of `studyId` for `purpose`, encrypted to `encryptionKey`.
    event AccessRequested(
        bytes32 indexed studyId,
        address indexed grantee,
        uint32 number,
        Mode mode,
        uint16 purpose,
        bytes32 notes,
        bytes encryptionKey
    );
    /// @notice The owner allowed access.
    event AccessAllowed(
        bytes32 indexed studyId,
        address indexed grantee,
        address indexed owner,
        uint32 seq,
        bytes32 series,
        Mode mode,
        uint64 notBefore,
        uint64 notAfter,
        uint16 purpose,
        bytes32 notes,
        bytes32 encryptionKey
    );
    /// @notice The owner denied the open request. An earlier grant goes on as it was.
    event AccessDenied(
        bytes32 indexed studyId,
        address indexed grantee,
        address indexed owner,
        uint32 seq,
        uint16 reason,
        bytes32 notes
    );
    /// @notice The owner took access away.
    event AccessRevoked(bytes32 indexed studyId, address indexed grantee, address indexed owner, uint32 seq);
    /// @notice `source` let itself in until `until`. `approver` is zero when the source needs none.
    event GlassBroken(
        bytes32 indexed studyId,
        address indexed source,
        address indexed owner,
        address operator,
        address approver,
        uint16 reason,
        bytes32 notes,
        uint64 until
    );
    /// @notice `grantee` wants the keys of a study that it may see, in an envelope that `oneTimeKey` opens as well.
    event KeysAsked(bytes32 indexed studyId, address indexed grantee, bytes oneTimeKey);
    /// @notice The study's source answers: `oneTimeKey` is the keccak-256 of the key that was given with the question. After
    /// `until` the grantee should not open it any more.
    event KeysDelivered(
        bytes32 indexed studyId, address indexed grantee, bytes32 oneTimeKey, uint64 until, bytes envelope
    );
    /// @notice From now on break-glass by `source` needs (or does not need) the word of a second operator.
    event EmergencyApprovalChanged(address indexed source, bool required);

    /// @notice The zero address was given.
    error ZeroAddress();
    /// @notice The key is empty or longer than `ENCRYPTION_KEY_BYTES_MAX`.
    error EncryptionKeyLength(uint256 length);
    /// @notice A grant or a request must say what of the study.
    error NoMode();
    /// @notice The grant would end before it begins, or has ended.
    error BadPeriod(uint64 notBefore, uint64 notAfter);
    /// @notice `grantee` has no open request.
    error NothingRequested(bytes32 studyId, address grantee);
    /// @notice The sender does not act for an active source.
    error NotSource(address sender);
    /// @notice Break-glass without a reason.
    error NoReason();
    /// @notice An emergency must end later than now and than the one before, and within the limit.
    error BadEmergency(uint64 until);
    /// @notice `approver` is not another operator of `source`.
    error NotApprover(address source, address approver);

    /// @notice Nothing of the study is allowed to `grantee` now.
    error NotAllowed(bytes32 studyId, address grantee);
    /// @notice The envelope is empty or longer than `ENVELOPE_BYTES_MAX`.
    error EnvelopeLength(uint256 length);
    /// @notice An envelope must end later than now and within the limit.
    error BadEnvelopeEnd(uint64 until);

    /// @notice Asks for `mode` of a study for the sender's source, or for the sender itself if it acts for none. Repeating replaces.
    function request(bytes32 studyId, Mode mode, uint16 purpose, bytes32 notes, bytes calldata encryptionKey) external;
    /// @notice Grants access on the owner's word, asked for or not. Replaces the grant before. Anybody may send it.
    function allow(Allowance calldata allowance, bytes calldata ownerSignature) external;
    /// @notice Denies the open request on the owner's word. Anybody may send it.
    function deny(
        bytes32 studyId,
        address grantee,
        uint16 reason,
        bytes32 notes,
        uint32 seq,
        uint64 deadline,
        bytes calldata ownerSignature
    ) external;
    /// @notice Takes access away on the owner's word; also before any was given, to void an allow that was signed and not sent.
    /// Anybody may send it.
    function revoke(bytes32 studyId, address grantee, uint32 seq, uint64 deadline, bytes calldata ownerSignature) external;
    /// @notice Lets the sender's source in until `emergency.until`. When the source demands it, `approver`, another of its
    /// operators, must have signed; else it may be zero. `deadline` is that of the approver's signature.
    function breakGlass(Emergency calldata emergency, bytes calldata approverSignature) external;
    /// @notice Demands (or no longer demands) a second operator for break-glass by the calling source. Identity only: an operator
    /// alone cannot switch it off.
    function setEmergencyApproval(bool required) external;

    /// @notice Asks for the keys of a study that the sender's source, or the sender itself if it acts for none, may see now.
    function askKeys(bytes32 studyId, bytes calldata oneTimeKey) external;
    /// @notice Answers {askKeys}. Only the study's source, and only while the grantee may see something. `until` is the last second
    /// at which it is good.
    function deliverKeys(
        bytes32 studyId,
        address grantee,
        bytes32 oneTimeKey,
        uint64 until,
        bytes calldata envelope
    ) external;

    /// @notice What `grantee` may see now of `series` (zero: of the whole study) for `purpose`, and until when. A grant for a
    /// purpose holds for that purpose alone, a grant without one for all. `emergency` when nothing but break-glass allows it.
    /// Nothing of a study that is unknown or tombstoned, nothing for a suspended source. The owner and the study's source are
    /// not mentioned here unless they are grantees too.
    function isAllowed(bytes32 studyId, bytes32 series, address grantee, uint16 purpose)
        external
        view
        returns (Mode mode, bool emergency, uint64 until);
    /// @notice The state of `studyId` towards `grantee`, with the reason of the last denial and the newest `seq`.
    function trace(bytes32 studyId, address grantee) external view returns (Trace state, uint16 reason, uint32 seq);
    /// @notice All that is recorded about (study, grantee), whether it holds now or not.
    function getGrant(bytes32 studyId, address grantee) external view returns (Grant memory);
    /// @notice Until when `source` let itself in, and why; zeros if never.
    function emergencyOf(bytes32 studyId, address source) external view returns (uint64 until, uint16 reason);
    /// @notice Whether break-glass by `source` needs a second operator.
    function emergencyApproval(address source) external view returns (bool);
    /// @notice The {IStudies} and {ISources} contract that is asked who owns and who acts.
    function registry() external view returns (address);
}
