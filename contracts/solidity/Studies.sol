// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Sources} from "./Sources.sol";
import {IStudies} from "./interfaces/IStudies.sol";

/// @title Studies
/// @notice See {IStudies}.
abstract contract Studies is IStudies, Sources {
    /// @notice Most guardians of one study.
    uint256 public constant GUARDIANS_MAX = 8;
    /// @notice Shortest and longest time in seconds that the owner has to veto a recovery.
    uint64 public constant RECOVERY_DELAY_MIN_S = 1 days;
    uint64 public constant RECOVERY_DELAY_MAX_S = 90 days;

    bytes32 private constant DEFINE_STUDY = keccak256(
        "DefineStudy(bytes32 studyId,address owner,address source,bool custodial,bytes32 derivedFrom,uint64 deadline)"
    );
    bytes32 private constant TRANSFER_STUDY =
        keccak256("TransferStudy(bytes32 studyId,address newOwner,bool custodial,uint32 seq,uint64 deadline)");
    bytes32 private constant TOMBSTONE_STUDY = keccak256("TombstoneStudy(bytes32 studyId,uint32 seq,uint64 deadline)");
    bytes32 private constant NAME_GUARDIANS =
        keccak256("NameGuardians(bytes32 studyId,bytes32 guardians,uint32 seq,uint64 deadline)");
    bytes32 private constant RECOVER_STUDY =
        keccak256("RecoverStudy(bytes32 studyId,address newOwner,bool custodial,uint32 seq,uint64 deadline)");
    bytes32 private constant VETO_RECOVERY = keccak256("VetoRecovery(bytes32 studyId,uint32 seq,uint64 deadline)");

    /// @dev All but the manifest is one slot: a definition writes no other new one.
    struct Study {
        address owner;
        uint16 source;
        uint32 seq;
        uint32 version;
        bool custodial;
        bool tombstoned;
        bytes32 manifestImage;
        bytes32 manifestRoot;
    }

    struct Recovery {
        address newOwner;
        bool custodial;
        uint64 readyAt;
    }

    mapping(bytes32 studyId => Study) private _studies;
    mapping(bytes32 studyId => bytes32 commitment) public guardiansOf;
    mapping(bytes32 studyId => Recovery) private _recoveries;

    function defineStudy(
        bytes32 studyId,
        address owner,
        bool custodial,
        bytes32 derivedFrom,
        uint64 deadline,
        bytes calldata ownerSignature
    ) external {
        if (studyId == 0 || owner == address(0)) revert ZeroValue();
        address source = _source();
        Study storage study = _studies[studyId];
        if (study.owner != address(0)) revert StudyExists(studyId);
        bytes32 message = keccak256(abi.encode(DEFINE_STUDY, studyId, owner, source, custodial, derivedFrom, deadline));
        _checkSigned(owner, message, deadline, ownerSignature);
        uint16 number = _countStudy(source);
        study.owner = owner;
        study.source = number;
        study.custodial = custodial;
        emit StudyDefined(studyId, source, owner, custodial);
        if (derivedFrom != 0) emit StudyDerived(studyId, source, derivedFrom);
    }

    function amend(bytes32 studyId, uint32 version, bytes32 manifestImage, bytes32 manifestRoot) external {
        Study storage study = _living(studyId);
        address source = _source();
        if (study.source != _numberOf(source)) revert NotStudySource(studyId, source);
        if (version <= study.version) revert VersionNotRising(study.version, version);
        study.version = version;
        study.manifestImage = manifestImage;
        study.manifestRoot = manifestRoot;
        emit StudyAmended(studyId, source, version, manifestImage, manifestRoot);
    }

    function transfer(
        bytes32 studyId,
        address newOwner,
        bool custodial,
        uint32 seq,
        uint64 deadline,
        bytes calldata ownerSignature
    ) external {
        if (newOwner == address(0)) revert ZeroValue();
        bytes32 message = keccak256(abi.encode(TRANSFER_STUDY, studyId, newOwner, custodial, seq, deadline));
        (Study storage study, address previous) = _ownersWord(studyId, message, seq, deadline, ownerSignature);
        // Guardians serve the owner who named them.
        _endRecovery(studyId);
        if (guardiansOf[studyId] != 0) {
            guardiansOf[studyId] = 0;
            emit GuardiansNamed(studyId, previous, 0, seq);
        }
        study.owner = newOwner;
        study.custodial = custodial;
        emit StudyTransferred(studyId, previous, newOwner, custodial, seq);
    }

    function tombstone(bytes32 studyId, uint32 seq, uint64 deadline, bytes calldata ownerSignature) external {
        bytes32 message = keccak256(abi.encode(TOMBSTONE_STUDY, studyId, seq, deadline));
        (Study storage study, address owner) = _ownersWord(studyId, message, seq, deadline, ownerSignature);
        _endRecovery(studyId);
        study.tombstoned = true;
        emit StudyTombstoned(studyId, owner, seq);
    }

    function nameGuardians(
        bytes32 studyId,
        bytes32 guardians,
        uint32 seq,
        uint64 deadline,
        bytes calldata ownerSignature
    ) external {
        bytes32 message = keccak256(abi.encode(NAME_GUARDIANS, studyId, guardians, seq, deadline));
        (, address owner) = _ownersWord(studyId, message, seq, deadline, ownerSignature);
        _endRecovery(studyId);
        guardiansOf[studyId] = guardians;
        emit GuardiansNamed(studyId, owner, guardians, seq);
    }

    function proposeRecovery(
        bytes32 studyId,
        address newOwner,
        bool custodial,
        uint64 deadline,
        GuardianSet calldata set,
        bytes[] calldata signatures
    ) external {
        if (newOwner == address(0)) revert ZeroValue();
        Study storage study = _living(studyId);
        if (block.timestamp > deadline) revert DeadlinePassed(deadline);
        _checkGuardians(studyId, set);
        // The very next number: guardians can neither play a proposal twice nor use up the owner's numbers.
        uint32 seq = study.seq + 1;
        bytes32 message = keccak256(abi.encode(RECOVER_STUDY, studyId, newOwner, custodial, seq, deadline));
        _checkSignatures(set, _hashTypedData(message), signatures);
        study.seq = seq;
        uint64 readyAt = uint64(block.timestamp) + set.delayS;
        _recoveries[studyId] = Recovery(newOwner, custodial, readyAt);
        emit RecoveryProposed(studyId, study.owner, newOwner, custodial, readyAt, seq);
    }

    function vetoRecovery(bytes32 studyId, uint32 seq, uint64 deadline, bytes calldata ownerSignature) external {
        bytes32 message = keccak256(abi.encode(VETO_RECOVERY, studyId, seq, deadline));
        _ownersWord(studyId, message, seq, deadline, ownerSignature);
        if (_recoveries[studyId].newOwner == address(0)) revert NoRecovery(studyId);
        _endRecovery(studyId);
    }

    function completeRecovery(bytes32 studyId) external {
        Study storage study = _living(studyId);
        Recovery memory recovery = _recoveries[studyId];
        if (recovery.newOwner == address(0)) revert NoRecovery(studyId);
        if (block.timestamp < recovery.readyAt) revert RecoveryTooEarly(studyId, recovery.readyAt);
        delete _recoveries[studyId];
        address previous = study.owner;
        study.owner = recovery.newOwner;
        study.custodial = recovery.custodial;
        uint32 seq = ++study.seq;
        emit StudyRecovered(studyId, previous, recovery.newOwner, recovery.custodial, seq);
    }

    function ownerOf(bytes32 studyId) external view returns (address) {
        return _studies[studyId].owner;
    }

    function livingOwnerOf(bytes32 studyId) external view returns (address) {
        return _living(studyId).owner;
    }

    function isLiving(bytes32 studyId) external view returns (bool) {
        Study storage study = _studies[studyId];
        return study.owner != address(0) && !study.tombstoned;
    }

    function ownerKindOf(bytes32 studyId) external view returns (OwnerKind) {
        Study storage study = _studies[studyId];
        if (study.owner == address(0)) return OwnerKind.None;
        if (study.custodial) return OwnerKind.Custodial;
        return study.owner.code.length == 0 ? OwnerKind.Own : OwnerKind.Contract;
    }

    function studySourceOf(bytes32 studyId) external view returns (address) {
        return sourceAt[_studies[studyId].source];
    }

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
        )
    {
        Study storage study = _studies[studyId];
        return (
            study.owner,
            sourceAt[study.source],
            study.seq,
            study.version,
            study.tombstoned,
            study.manifestImage,
            study.manifestRoot
        );
    }

    function recoveryOf(bytes32 studyId) external view returns (address newOwner, bool custodial, uint64 readyAt) {
        Recovery storage recovery = _recoveries[studyId];
        return (recovery.newOwner, recovery.custodial, recovery.readyAt);
    }

    function guardianCommitment(bytes32 studyId, GuardianSet calldata set) public pure returns (bytes32) {
        return keccak256(abi.encode(studyId, set.guardians, set.threshold, set.delayS, set.salt));
    }

    function _source() private view returns (address source) {
        source = sourceOf(msg.sender);
        if (source == address(0)) revert NotSource(msg.sender);
    }

    function _living(bytes32 studyId) private view returns (Study storage study) {
        study = _studies[studyId];
        if (study.owner == address(0)) revert StudyUnknown(studyId);
        if (study.tombstoned) revert StudyDead(studyId);
    }

    /// @dev What every message of the owner needs: a living study, a rising number, the owner's signature.
    function _ownersWord(bytes32 studyId, bytes32 message, uint32 seq, uint64 deadline, bytes calldata signature)
        private
        returns (Study storage study, address owner)
    {
        study = _living(studyId);
        owner = study.owner;
        if (seq <= study.seq) revert SeqNotRising(study.seq, seq);
        study.seq = seq;
        _checkSigned(owner, message, deadline, signature);
    }

    function _endRecovery(bytes32 studyId) private {
        address newOwner = _recoveries[studyId].newOwner;
        if (newOwner == address(0)) return;
        delete _recoveries[studyId];
        emit RecoveryEnded(studyId, newOwner);
    }

    /// @dev The set is the one that the owner named, and it makes sense.
    function _checkGuardians(bytes32 studyId, GuardianSet calldata set) private view {
        bytes32 named = guardiansOf[studyId];
        if (named == 0 || guardianCommitment(studyId, set) != named) revert NotTheGuardians(studyId);
        uint256 count = set.guardians.length;
        bool sound = count <= GUARDIANS_MAX && set.threshold != 0 && set.threshold <= count
            && set.delayS >= RECOVERY_DELAY_MIN_S && set.delayS <= RECOVERY_DELAY_MAX_S;
        for (uint256 i = 0; sound && i < count; ++i) {
            // Ascending, so that nobody counts twice.
            sound = set.guardians[i] > (i == 0 ? address(0) : set.guardians[i - 1]);
        }
        if (!sound) revert UnsoundGuardians(studyId);
    }

    /// @dev `signatures[i]` is of guardian i, or empty. One that is not good is a mistake, not an abstention.
    function _checkSignatures(GuardianSet calldata set, bytes32 digest, bytes[] calldata signatures) private view {
        if (signatures.length != set.guardians.length) revert TooFewGuardians(0, set.threshold);
        uint256 signed;
        for (uint256 i = 0; i < signatures.length; ++i) {
            if (signatures[i].length == 0) continue;
            if (!_isSigned(set.guardians[i], digest, signatures[i])) revert BadSignature(set.guardians[i]);
            ++signed;
        }
        if (signed < set.threshold) revert TooFewGuardians(signed, set.threshold);
    }

    function _domainNameAndVersion() internal pure override returns (string memory, string memory) {
        return ("PACS Bridge Studies", "1");
    }
}
