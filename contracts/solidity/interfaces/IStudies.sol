// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// @title Define Study: which studies exist, whose they are and where they came from
/// @notice A study is defined once, by two parties: its source sends the transaction, its owner (the patient, or the key that
/// stands for the patient) signs an EIP-712 message. Neither can define a study alone. Owners may be contracts (EIP-1271).
/// Owners never need a balance: every message they sign may be sent by anybody.
///
/// Messages (domain name "PACS Bridge Studies", version "1", chain id, this contract):
/// - `DefineStudy(bytes32 studyId,address owner,address source,uint64 deadline)`
/// - `TransferStudy(bytes32 studyId,address newOwner,uint64 seq,uint64 deadline)`
/// - `TombstoneStudy(bytes32 studyId,uint64 seq,uint64 deadline)`
///
/// `seq` rises strictly per study over transfers and tombstones together, so a message that was overtaken can never be
/// played later. `deadline` is in seconds since 1970 and is the last moment at which a message is good.
///
/// Inconvenient facts:
/// - `studyId` must be a salted hash. The contract cannot know; a plain hash of a DICOM UID can be guessed.
/// - Ids share one name space. Who sees a pending definition may use its id first; the honest side then draws a new salt.
/// - A tombstone removes nothing from the ledger. It says that the study must not be served or extended any more.
/// - A transfer to a mistyped owner cannot be undone here.
/// - The stake counts definitions, tombstones included. Owner keys are free, so the count is evidence, not proof, of work.
interface IStudies {
    /// @notice `source` and `owner` defined `studyId`.
    event StudyDefined(bytes32 indexed studyId, address indexed source, address indexed owner);
    /// @notice The manifest of `studyId` is now `version`: image `manifestImage` in the Pieces contract with root `manifestRoot`.
    event StudyAmended(
        bytes32 indexed studyId, address indexed source, uint32 version, bytes32 manifestImage, bytes32 manifestRoot
    );
    /// @notice `studyId` changed hands.
    event StudyTransferred(bytes32 indexed studyId, address indexed previousOwner, address indexed newOwner, uint64 seq);
    /// @notice The owner of `studyId` asked that it be neither served nor extended any more.
    event StudyTombstoned(bytes32 indexed studyId, address indexed owner, uint64 seq);

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
    /// @notice The message's deadline has passed.
    error DeadlinePassed(uint64 deadline);
    /// @notice The owner did not sign this message.
    error BadOwnerSignature(address owner);
    /// @notice The manifest version does not rise.
    error VersionNotRising(uint32 current, uint32 given);
    /// @notice The sequence number does not rise.
    error SeqNotRising(uint64 current, uint64 given);

    /// @notice Define Study. The sender must act for an active source; `ownerSignature` covers that source.
    function defineStudy(bytes32 studyId, address owner, uint64 deadline, bytes calldata ownerSignature) external;
    /// @notice Announces manifest `version` of the sender's study. Versions rise strictly, starting above zero.
    function amend(bytes32 studyId, uint32 version, bytes32 manifestImage, bytes32 manifestRoot) external;
    /// @notice Hands the study to a new owner key, on the present owner's signed word. Anybody may send it.
    function transfer(bytes32 studyId, address newOwner, uint64 seq, uint64 deadline, bytes calldata ownerSignature)
        external;
    /// @notice Marks the study as gone, on the owner's signed word. Anybody may send it.
    function tombstone(bytes32 studyId, uint64 seq, uint64 deadline, bytes calldata ownerSignature) external;

    /// @notice The owner of `studyId`; zero if unknown. Stays after a tombstone.
    function ownerOf(bytes32 studyId) external view returns (address);
    /// @notice The source of `studyId`; zero if unknown.
    function sourceOf(bytes32 studyId) external view returns (address);
    /// @notice Everything about `studyId`; zeros if unknown.
    function getStudy(bytes32 studyId)
        external
        view
        returns (
            address owner,
            address source,
            uint64 seq,
            uint32 version,
            bool tombstoned,
            bytes32 manifestImage,
            bytes32 manifestRoot
        );
    /// @notice Number of studies that `source` defined: its stake in the sense of Patel (2018).
    function stakeOf(address source) external view returns (uint256);
    /// @notice Number of studies defined by all sources.
    function stakeTotal() external view returns (uint256);
    /// @notice The Sources contract that is asked who may define.
    function sources() external view returns (address);
}
