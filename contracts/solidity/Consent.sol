// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Signed} from "./Signed.sol";
import {IConsent} from "./interfaces/IConsent.sol";
import {ISources} from "./interfaces/ISources.sol";
import {IStudies} from "./interfaces/IStudies.sol";

/// @title Consent
/// @notice See {IConsent}.
contract Consent is IConsent, Signed {
    /// @notice Longest OpenPGP key in bytes.
    uint256 public constant ENCRYPTION_KEY_BYTES_MAX = 1024;
    /// @notice Longest emergency in seconds.
    uint64 public constant EMERGENCY_S_MAX = 1 days;
    /// @notice Longest envelope in bytes.
    uint256 public constant ENVELOPE_BYTES_MAX = 16_384;
    /// @notice Longest life of an envelope in seconds.
    uint64 public constant ENVELOPE_S_MAX = 30 days;

    bytes32 private constant ALLOW = keccak256(
        "Allow(bytes32 studyId,address grantee,bytes32 series,uint8 mode,uint64 notBefore,uint64 notAfter,uint16 purpose,bytes32 notes,bytes32 encryptionKey,uint32 seq,uint64 deadline)"
    );
    bytes32 private constant DENY =
        keccak256("Deny(bytes32 studyId,address grantee,uint16 reason,bytes32 notes,uint32 seq,uint64 deadline)");
    bytes32 private constant REVOKE =
        keccak256("Revoke(bytes32 studyId,address grantee,uint32 seq,uint64 deadline)");
    bytes32 private constant APPROVE_EMERGENCY = keccak256(
        "ApproveEmergency(bytes32 studyId,address source,address operator,uint16 reason,bytes32 notes,uint64 until,uint64 deadline)"
    );

    struct Opened {
        uint64 until;
        uint16 reason;
    }

    address public registry;
    mapping(bytes32 studyId => mapping(address grantee => Grant)) private _grants;
    mapping(bytes32 studyId => mapping(address source => Opened)) private _opened;
    mapping(address source => bool) public emergencyApproval;

    constructor(address registry_) {
        if (registry_ == address(0)) revert ZeroAddress();
        registry = registry_;
    }

    function request(bytes32 studyId, Mode mode, uint16 purpose, bytes32 notes, bytes calldata encryptionKey) external {
        address known = registry;
        IStudies(known).livingOwnerOf(studyId);
        if (mode == Mode.None) revert NoMode();
        _checkKey(encryptionKey);
        address grantee = _sender();
        Grant storage grant = _grants[studyId][grantee];
        uint32 number = grant.requests + 1;
        grant.requests = number;
        grant.request = Request.Open;
        grant.requestedKey = keccak256(encryptionKey);
        emit AccessRequested(studyId, grantee, number, mode, purpose, notes, encryptionKey);
    }

    function allow(Allowance calldata allowance, bytes calldata ownerSignature) external {
        if (allowance.grantee == address(0)) revert ZeroAddress();
        if (allowance.mode == Mode.None) revert NoMode();
        if (allowance.notAfter < allowance.notBefore || allowance.notAfter < block.timestamp) {
            revert BadPeriod(allowance.notBefore, allowance.notAfter);
        }
        // A struct of static members encodes as its members in a row, which is what EIP-712 hashes.
        bytes32 message = keccak256(abi.encode(ALLOW, allowance));
        (Grant storage grant, address owner) = _ownersWord(
            allowance.studyId, allowance.grantee, message, allowance.seq, allowance.deadline, ownerSignature
        );
        grant.decision = Decision.Allowed;
        grant.request = grant.request == Request.Open ? Request.Accepted : Request.None;
        grant.mode = allowance.mode;
        grant.notBefore = allowance.notBefore;
        grant.notAfter = allowance.notAfter;
        grant.purpose = allowance.purpose;
        grant.series = allowance.series;
        grant.encryptionKey = allowance.encryptionKey;
        _emitAllowed(allowance, owner);
    }

    function deny(
        bytes32 studyId,
        address grantee,
        uint16 reason,
        bytes32 notes,
        uint32 seq,
        uint64 deadline,
        bytes calldata ownerSignature
    ) external {
        bytes32 message = keccak256(abi.encode(DENY, studyId, grantee, reason, notes, seq, deadline));
        (Grant storage grant, address owner) = _ownersWord(studyId, grantee, message, seq, deadline, ownerSignature);
        if (grant.request != Request.Open) revert NothingRequested(studyId, grantee);
        grant.request = Request.Denied;
        grant.reason = reason;
        emit AccessDenied(studyId, grantee, owner, seq, reason, notes);
    }

    function revoke(bytes32 studyId, address grantee, uint32 seq, uint64 deadline, bytes calldata ownerSignature)
        external
    {
        bytes32 message = keccak256(abi.encode(REVOKE, studyId, grantee, seq, deadline));
        (Grant storage grant, address owner) = _ownersWord(studyId, grantee, message, seq, deadline, ownerSignature);
        grant.decision = Decision.Revoked;
        if (grant.request != Request.Open) grant.request = Request.None;
        emit AccessRevoked(studyId, grantee, owner, seq);
    }

    function breakGlass(Emergency calldata emergency, bytes calldata approverSignature) external {
        address known = registry;
        address source = ISources(known).sourceOf(msg.sender);
        if (source == address(0)) revert NotSource(msg.sender);
        address owner = IStudies(known).livingOwnerOf(emergency.studyId);
        if (emergency.reason == 0) revert NoReason();
        Opened storage opened = _opened[emergency.studyId][source];
        uint64 until = emergency.until;
        if (until <= block.timestamp || until > block.timestamp + EMERGENCY_S_MAX || until <= opened.until) {
            revert BadEmergency(until);
        }
        if (emergency.approver != address(0) || emergencyApproval[source]) {
            _checkApprover(emergency, source, approverSignature);
        }
        opened.until = until;
        opened.reason = emergency.reason;
        emit GlassBroken(
            emergency.studyId, source, owner, msg.sender, emergency.approver, emergency.reason, emergency.notes, until
        );
    }

    function setEmergencyApproval(bool required) external {
        if (!ISources(registry).isActive(msg.sender)) revert NotSource(msg.sender);
        emergencyApproval[msg.sender] = required;
        emit EmergencyApprovalChanged(msg.sender, required);
    }

    function askKeys(bytes32 studyId, bytes calldata oneTimeKey) external {
        _checkKey(oneTimeKey);
        address grantee = _sender();
        _checkAllowed(studyId, grantee);
        emit KeysAsked(studyId, grantee, oneTimeKey);
    }

    function deliverKeys(
        bytes32 studyId,
        address grantee,
        bytes32 oneTimeKey,
        uint64 until,
        bytes calldata envelope
    ) external {
        address known = registry;
        address source = ISources(known).sourceOf(msg.sender);
        if (source == address(0) || source != IStudies(known).studySourceOf(studyId)) revert NotSource(msg.sender);
        if (envelope.length == 0 || envelope.length > ENVELOPE_BYTES_MAX) revert EnvelopeLength(envelope.length);
        if (until <= block.timestamp || until > block.timestamp + ENVELOPE_S_MAX) revert BadEnvelopeEnd(until);
        _checkAllowed(studyId, grantee);
        emit KeysDelivered(studyId, grantee, oneTimeKey, until, envelope);
    }

    function isAllowed(bytes32 studyId, bytes32 series, address grantee, uint16 purpose)
        external
        view
        returns (Mode mode, bool emergency, uint64 until)
    {
        address known = registry;
        if (!IStudies(known).isLiving(studyId) || ISources(known).isSuspended(grantee)) return (Mode.None, false, 0);
        Grant storage grant = _grants[studyId][grantee];
        bool fits = (grant.series == 0 || grant.series == series) && (grant.purpose == 0 || grant.purpose == purpose);
        if (fits && _inForce(grant)) (mode, until) = (grant.mode, grant.notAfter);
        uint64 emergencyUntil = _opened[studyId][grantee].until;
        // An emergency adds what the grant leaves out.
        if (mode != Mode.Full && block.timestamp <= emergencyUntil) return (Mode.Full, true, emergencyUntil);
    }

    function trace(bytes32 studyId, address grantee) external view returns (Trace state, uint16 reason, uint32 seq) {
        Grant storage grant = _grants[studyId][grantee];
        return (_trace(studyId, grant), grant.reason, grant.seq);
    }

    function getGrant(bytes32 studyId, address grantee) external view returns (Grant memory) {
        return _grants[studyId][grantee];
    }

    function emergencyOf(bytes32 studyId, address source) external view returns (uint64 until, uint16 reason) {
        Opened storage opened = _opened[studyId][source];
        return (opened.until, opened.reason);
    }

    function _trace(bytes32 studyId, Grant storage grant) private view returns (Trace) {
        // Nothing was ever said: also for studies that do not exist.
        if (grant.seq == 0 && grant.requests == 0) return Trace.NotAuthorised;
        if (!IStudies(registry).isLiving(studyId)) return Trace.Removed;
        if (_inForce(grant)) return Trace.Authorised;
        if (grant.decision == Decision.Allowed && block.timestamp < grant.notBefore) return Trace.Accepted;
        if (grant.request == Request.Open) return Trace.Requested;
        if (grant.request == Request.Denied) return Trace.Denied;
        return grant.decision == Decision.Revoked ? Trace.Removed : Trace.NotAuthorised;
    }

    function _inForce(Grant storage grant) private view returns (bool) {
        return grant.decision == Decision.Allowed && block.timestamp >= grant.notBefore && block.timestamp <= grant.notAfter;
    }

    /// @dev Whom the sender speaks for.
    function _sender() private view returns (address grantee) {
        grantee = ISources(registry).sourceOf(msg.sender);
        if (grantee == address(0)) grantee = msg.sender;
    }

    function _checkKey(bytes calldata key) private pure {
        if (key.length == 0 || key.length > ENCRYPTION_KEY_BYTES_MAX) revert EncryptionKeyLength(key.length);
    }

    /// @dev Something of the study, whatever series or purpose it is for, is allowed now.
    function _checkAllowed(bytes32 studyId, address grantee) private view {
        address known = registry;
        bool open = _inForce(_grants[studyId][grantee]) || block.timestamp <= _opened[studyId][grantee].until;
        if (!open || !IStudies(known).isLiving(studyId) || ISources(known).isSuspended(grantee)) {
            revert NotAllowed(studyId, grantee);
        }
    }

    /// @dev What every message of the owner needs: a living study, a rising number, the signature of today's owner.
    function _ownersWord(
        bytes32 studyId,
        address grantee,
        bytes32 message,
        uint32 seq,
        uint64 deadline,
        bytes calldata signature
    ) private returns (Grant storage grant, address owner) {
        owner = IStudies(registry).livingOwnerOf(studyId);
        grant = _grants[studyId][grantee];
        if (seq <= grant.seq) revert SeqNotRising(grant.seq, seq);
        grant.seq = seq;
        _checkSigned(owner, message, deadline, signature);
    }

    function _checkApprover(Emergency calldata e, address source, bytes calldata signature) private view {
        if (e.approver == msg.sender || ISources(registry).sourceOf(e.approver) != source) {
            revert NotApprover(source, e.approver);
        }
        bytes32 message = keccak256(
            abi.encode(APPROVE_EMERGENCY, e.studyId, source, msg.sender, e.reason, e.notes, e.until, e.deadline)
        );
        _checkSigned(e.approver, message, e.deadline, signature);
    }

    function _emitAllowed(Allowance calldata a, address owner) private {
        emit AccessAllowed(
            a.studyId,
            a.grantee,
            owner,
            a.seq,
            a.series,
            a.mode,
            a.notBefore,
            a.notAfter,
            a.purpose,
            a.notes,
            a.encryptionKey
        );
    }

    function _domainNameAndVersion() internal pure override returns (string memory, string memory) {
        return ("PACS Bridge Consent", "1");
    }
}
