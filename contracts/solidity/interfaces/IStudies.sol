// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ISigned} from "./ISigned.sol";

/// @title Define Study: which studies exist, whose they are and where they came from
/// @notice A study is defined once, by two parties: its source sends the transaction, its owner (the patient, or the key that
/// stands for the patient) signs an EIP-712 message. Neither can define a study alone. Owners may be contracts (EIP-1271).
/// Owners never need a balance: every message they sign may be sent by anybody.
///
/// Messages (domain name "PACS Bridge Studies", version "1", chain id, this contract):
/// - `DefineStudy(bytes32 studyId,address owner,address source,bool custodial,bytes32 derivedFrom,uint64 deadline)`
/// - `TransferStudy(bytes32 studyId,address newOwner,bool custodial,uint32 seq,uint64 deadline)`
/// - `TombstoneStudy(bytes32 studyId,uint32 seq,uint64 deadline)`
/// - `NameGuardians(bytes32 studyId,bytes32 guardians,uint32 seq,uint64 deadline)`
/// - `VetoRecovery(bytes32 studyId,uint32 seq,uint64 deadline)`
/// - `RecoverStudy(bytes32 studyId,address newOwner,bool custodial,uint32 seq,uint64 deadline)`, signed by guardians; `seq` is the
///   study's number plus one
///
/// `seq` rises strictly per study over all these messages together, so a message that was overtaken can never be played later.
/// `deadline` is in seconds since 1970 and is the last moment at which a message is good.
///
/// *Custodial* means that the source holds the owner's key in the patient's stead. It is part of what is signed, so that everybody
/// sees whether a patient or a hospital speaks.
///
/// *Guardians* are named by the owner as a commitment, `guardianCommitment`: who they are, how many must agree and how long the
/// owner may object stays unknown until they act. A recovery that enough of them signed takes effect after the delay unless the
/// owner vetoes, transfers, names other guardians or ends the study. After a transfer there are no guardians until the new owner
/// names some; after a recovery they stay, since the patient stays.
///
/// Inconvenient facts:
/// - `studyId` must be a salted hash. The contract cannot know; a plain hash of a DICOM UID can be guessed.
/// - Ids share one name space. Who sees a pending definition may use its id first; the honest side then draws a new salt.
/// - A tombstone removes nothing from the ledger. It says that the study must not be served or extended any more.
/// - A transfer to a mistyped owner cannot be undone here.
/// - The commitment to guardians is not checked when it is made: an unsound set, or one that everybody lost, never recovers anything.
/// - A custodial key that a source kept a copy of can do everything until the study is transferred. That is what custodial means.
/// - Whoever owned a study and becomes its owner again is bound by what he signed before, as far as its number is still to come.
/// - The stake counts definitions, tombstones included. Owner keys are free, so the count is evidence, not proof, of work.
interface IStudies is ISigned {
    /// @notice Whose hand holds the owner's key.
    enum OwnerKind {
        /// @notice The study is not defined.
        None,
        /// @notice The source holds the key for the patient.
        Custodial,
        /// @notice The patient, a research group or whoever owns the study holds the key.
        Own,
        /// @notice The owner is a contract (EIP-1271).
        Contract
    }

    /// @notice Who may recover a study. `guardians` ascend, at most `GUARDIANS_MAX`; `threshold` of them must sign; the owner may
    /// object for `delayS` seconds; `salt` keeps strangers from guessing the set.
    struct GuardianSet {
        address[] guardians;
        uint8 threshold;
        uint32 delayS;
        bytes32 salt;
    }

    /// @notice `source` and `owner` defined `studyId`.
    event StudyDefined(bytes32 indexed studyId, address indexed source, address indexed owner, bool custodial);
    /// @notice `studyId` was made from another study, for instance by de-identification. `derivedFrom` is
    /// keccak256(salt32 ‖ the other's id): who knows the salt can prove the lineage, nobody else learns it.
    event StudyDerived(bytes32 indexed studyId, address indexed source, bytes32 derivedFrom);
    /// @notice The manifest of `studyId` is now `version`: image `manifestImage` in the Pieces contract with root `manifestRoot`.
    event StudyAmended(
        bytes32 indexed studyId, address indexed source, uint32 version, bytes32 manifestImage, bytes32 manifestRoot
    );
    /// @notice `studyId` changed hands.
    event StudyTransferred(
        bytes32 indexed studyId, address indexed previousOwner, address indexed newOwner, bool custodial, uint32 seq
    );
    /// @notice The owner of `studyId` asked that it be neither served nor extended any more.
    event StudyTombstoned(bytes32 indexed studyId, address indexed owner, uint32 seq);
    /// @notice `owner` named the guardians committed to by `guardians`; zero: none.
    event GuardiansNamed(bytes32 indexed studyId, address indexed owner, bytes32 guardians, uint32 seq);
    /// @notice Enough guardians want `newOwner` to own `studyId` from `readyAt` on. The owner may still veto.
    event RecoveryProposed(
        bytes32 indexed studyId,
        address indexed owner,
        address indexed newOwner,
        bool custodial,
        uint64 readyAt,
        uint32 seq
    );
    /// @notice The recovery of `studyId` to `newOwner` was vetoed or overtaken by something else that the owner did.
    event RecoveryEnded(bytes32 indexed studyId, address indexed newOwner);
    /// @notice `studyId` was recovered.
    event StudyRecovered(
        bytes32 indexed studyId, address indexed previousOwner, address indexed newOwner, bool custodial, uint32 seq
    );

    /// @notice The zero study id or the zero owner was given.
    error ZeroValue();
    /// @notice The sender does not act for an active source.
    error NotSource(address sender);
    /// @notice The sender acts for another source than the study's.
    error NotStudySource(bytes32 studyId, address source);
    /// @notice `studyId` is defined already.
    error StudyExists(bytes32 studyId);
    /// @notice `studyId` is not defined.
    error StudyUnknown(bytes32 studyId);
    /// @notice `studyId` was tombstoned.
    error StudyDead(bytes32 studyId);
    /// @notice The manifest version does not rise.
    error VersionNotRising(uint32 current, uint32 given);
    /// @notice The guardians given are not those that the owner named.
    error NotTheGuardians(bytes32 studyId);
    /// @notice The guardians named are too many, not ascending, or have an impossible threshold or delay.
    error UnsoundGuardians(bytes32 studyId);
    /// @notice Fewer guardians signed than must.
    error TooFewGuardians(uint256 signed, uint256 threshold);
    /// @notice No recovery of `studyId` is under way.
    error NoRecovery(bytes32 studyId);
    /// @notice The owner may veto until `readyAt`.
    error RecoveryTooEarly(bytes32 studyId, uint64 readyAt);

    /// @notice Define Study. The sender must act for an active source; `ownerSignature` covers that source. `derivedFrom` is zero
    /// for what a modality made, else the salted hash of the study that this one was made from.
    function defineStudy(
        bytes32 studyId,
        address owner,
        bool custodial,
        bytes32 derivedFrom,
        uint64 deadline,
        bytes calldata ownerSignature
    ) external;
    /// @notice Announces manifest `version` of the sender's study. Versions rise strictly, starting above zero.
    function amend(bytes32 studyId, uint32 version, bytes32 manifestImage, bytes32 manifestRoot) external;
    /// @notice Hands the study to a new owner key, on the present owner's signed word. Anybody may send it.
    function transfer(
        bytes32 studyId,
        address newOwner,
        bool custodial,
        uint32 seq,
        uint64 deadline,
        bytes calldata ownerSignature
    ) external;
    /// @notice Marks the study as gone, on the owner's signed word. Anybody may send it.
    function tombstone(bytes32 studyId, uint32 seq, uint64 deadline, bytes calldata ownerSignature) external;
    /// @notice Names guardians by their commitment, zero for none, on the owner's signed word. Anybody may send it.
    function nameGuardians(
        bytes32 studyId,
        bytes32 guardians,
        uint32 seq,
        uint64 deadline,
        bytes calldata ownerSignature
    ) external;
    /// @notice Proposes `newOwner` on the signed word of enough guardians; `signatures[i]` is that of guardian i, or empty.
    /// A new proposal replaces the one before and begins the delay anew. Anybody may send it.
    function proposeRecovery(
        bytes32 studyId,
        address newOwner,
        bool custodial,
        uint64 deadline,
        GuardianSet calldata set,
        bytes[] calldata signatures
    ) external;
    /// @notice Ends the recovery under way, on the owner's signed word, until it was completed. Anybody may send it.
    function vetoRecovery(bytes32 studyId, uint32 seq, uint64 deadline, bytes calldata ownerSignature) external;
    /// @notice Completes a recovery whose delay is over. Anybody may send it.
    function completeRecovery(bytes32 studyId) external;

    /// @notice The owner of `studyId`; zero if unknown. Stays after a tombstone.
    function ownerOf(bytes32 studyId) external view returns (address);
    /// @notice The owner of `studyId`. Reverts when it is unknown or tombstoned.
    function livingOwnerOf(bytes32 studyId) external view returns (address);
    /// @notice Whether `studyId` is defined and not tombstoned.
    function isLiving(bytes32 studyId) external view returns (bool);
    /// @notice Whose hand holds the owner's key, as the owner said, and whether it is a contract, as the chain says.
    function ownerKindOf(bytes32 studyId) external view returns (OwnerKind);
    /// @notice The source of `studyId`; zero if unknown.
    function studySourceOf(bytes32 studyId) external view returns (address);
    /// @notice The commitment to the guardians of `studyId`; zero if none.
    function guardiansOf(bytes32 studyId) external view returns (bytes32 commitment);
    /// @notice What `nameGuardians` must be given for `set`: keccak256(abi.encode(studyId, guardians, threshold, delayS, salt)).
    function guardianCommitment(bytes32 studyId, GuardianSet calldata set) external pure returns (bytes32);
    /// @notice The recovery of `studyId` under way; zeros if none.
    function recoveryOf(bytes32 studyId) external view returns (address newOwner, bool custodial, uint64 readyAt);
    /// @notice Everything else about `studyId`; zeros if unknown.
    function getStudy(bytes32 studyId)
        external
        view
        returns (
            address owner,
            address source,
            uint32 seq,
            uint32 version,
            bool tombstoned,
            bytes32 manifestImage,
            bytes32 manifestRoot
        );
}
