// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {EIP712} from "solady/src/utils/EIP712.sol";
import {SignatureCheckerLib} from "solady/src/utils/SignatureCheckerLib.sol";
import {ISources} from "./interfaces/ISources.sol";
import {IStudies} from "./interfaces/IStudies.sol";

/// @title Studies
/// @notice See {IStudies}.
/// @dev Nothing is keyed by signature bytes: signatures are malleable and EIP-1271 owners may have many for one message.
contract Studies is IStudies, EIP712 {
    bytes32 private constant DEFINE_STUDY =
        keccak256("DefineStudy(bytes32 studyId,address owner,address source,uint64 deadline)");
    bytes32 private constant TRANSFER_STUDY =
        keccak256("TransferStudy(bytes32 studyId,address newOwner,uint64 seq,uint64 deadline)");
    bytes32 private constant TOMBSTONE_STUDY = keccak256("TombstoneStudy(bytes32 studyId,uint64 seq,uint64 deadline)");

    struct Study {
        address owner;
        uint64 seq;
        bool tombstoned;
        address source;
        uint32 version;
        bytes32 manifestImage;
        bytes32 manifestRoot;
    }

    ISources private _registry;
    mapping(bytes32 studyId => Study) private _studies;
    mapping(address source => uint256) public stakeOf;
    uint256 public stakeTotal;

    constructor(address registry) {
        if (registry == address(0)) revert ZeroValue();
        _registry = ISources(registry);
    }

    function defineStudy(bytes32 studyId, address owner, uint64 deadline, bytes calldata ownerSignature) external {
        if (studyId == 0 || owner == address(0)) revert ZeroValue();
        address source = _source();
        if (_studies[studyId].owner != address(0)) revert StudyExists(studyId);
        bytes32 message = keccak256(abi.encode(DEFINE_STUDY, studyId, owner, source, deadline));
        _checkOwner(owner, message, deadline, ownerSignature);
        _studies[studyId].owner = owner;
        _studies[studyId].source = source;
        ++stakeOf[source];
        ++stakeTotal;
        emit StudyDefined(studyId, source, owner);
    }

    function amend(bytes32 studyId, uint32 version, bytes32 manifestImage, bytes32 manifestRoot) external {
        Study storage study = _living(studyId);
        address source = _source();
        if (study.source != source) revert NotStudySource(studyId, source);
        if (version <= study.version) revert VersionNotRising(study.version, version);
        study.version = version;
        study.manifestImage = manifestImage;
        study.manifestRoot = manifestRoot;
        emit StudyAmended(studyId, source, version, manifestImage, manifestRoot);
    }

    function transfer(bytes32 studyId, address newOwner, uint64 seq, uint64 deadline, bytes calldata ownerSignature)
        external
    {
        if (newOwner == address(0)) revert ZeroValue();
        Study storage study = _living(studyId);
        address previous = study.owner;
        bytes32 message = keccak256(abi.encode(TRANSFER_STUDY, studyId, newOwner, seq, deadline));
        _spendSeq(study, seq);
        _checkOwner(previous, message, deadline, ownerSignature);
        study.owner = newOwner;
        emit StudyTransferred(studyId, previous, newOwner, seq);
    }

    function tombstone(bytes32 studyId, uint64 seq, uint64 deadline, bytes calldata ownerSignature) external {
        Study storage study = _living(studyId);
        address owner = study.owner;
        bytes32 message = keccak256(abi.encode(TOMBSTONE_STUDY, studyId, seq, deadline));
        _spendSeq(study, seq);
        _checkOwner(owner, message, deadline, ownerSignature);
        study.tombstoned = true;
        emit StudyTombstoned(studyId, owner, seq);
    }

    function ownerOf(bytes32 studyId) external view returns (address) {
        return _studies[studyId].owner;
    }

    function sourceOf(bytes32 studyId) external view returns (address) {
        return _studies[studyId].source;
    }

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
        )
    {
        Study storage study = _studies[studyId];
        return (
            study.owner,
            study.source,
            study.seq,
            study.version,
            study.tombstoned,
            study.manifestImage,
            study.manifestRoot
        );
    }

    function sources() external view returns (address) {
        return address(_registry);
    }

    function _source() private view returns (address source) {
        source = _registry.sourceOf(msg.sender);
        if (source == address(0)) revert NotSource(msg.sender);
    }

    function _living(bytes32 studyId) private view returns (Study storage study) {
        study = _studies[studyId];
        if (study.owner == address(0)) revert StudyUnknown(studyId);
        if (study.tombstoned) revert StudyDead(studyId);
    }

    function _spendSeq(Study storage study, uint64 seq) private {
        if (seq <= study.seq) revert SeqNotRising(study.seq, seq);
        study.seq = seq;
    }

    function _checkOwner(address owner, bytes32 message, uint64 deadline, bytes calldata signature) private view {
        if (block.timestamp > deadline) revert DeadlinePassed(deadline);
        if (!SignatureCheckerLib.isValidSignatureNowCalldata(owner, _hashTypedData(message), signature)) {
            revert BadOwnerSignature(owner);
        }
    }

    function _domainNameAndVersion() internal pure override returns (string memory, string memory) {
        return ("PACS Bridge Studies", "1");
    }

    /// @dev Without this, Solady caches the domain in immutables and the runtime code differs at every address, so that its
    /// hash could not be compared with the published artifact.
    function _domainNameAndVersionMayChange() internal pure override returns (bool) {
        return true;
    }
}
