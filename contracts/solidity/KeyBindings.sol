// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Signed} from "./Signed.sol";
import {IKeyBindings} from "./interfaces/IKeyBindings.sol";

/// @title Key bindings
/// @notice See {IKeyBindings}.
contract KeyBindings is IKeyBindings, Signed {
    /// @notice Octets of a SubjectPublicKeyInfo with a named curve of 256 bits whose name has eight octets, and the uncompressed point.
    uint256 public constant SPKI_BYTES = 91;
    /// @notice Octets of a proof.
    uint256 public constant PROOF_BYTES = 64;

    bytes32 private constant BIND_KEY = keccak256(
        "BindKey(address account,bytes spki,bytes proof,uint64 notAfter,uint32 seq,uint64 deadline)"
    );
    bytes32 private constant UNBIND_KEY =
        keccak256("UnbindKey(address account,bytes32 key,uint32 seq,uint64 deadline)");

    address public registry;
    mapping(address account => mapping(bytes32 key => uint64)) public notAfterOf;
    mapping(address account => uint32) public seqOf;

    constructor(address registry_) {
        if (registry_ == address(0)) revert ZeroAddress();
        registry = registry_;
    }

    function bindKey(
        address account,
        bytes calldata spki,
        bytes calldata proof,
        uint64 notAfter,
        uint32 seq,
        uint64 deadline,
        bytes calldata accountSignature
    ) external {
        if (spki.length != SPKI_BYTES) revert SpkiLength(spki.length);
        if (proof.length != PROOF_BYTES) revert ProofLength(proof.length);
        if (notAfter < block.timestamp) revert BadEnd(notAfter);
        bytes32 message =
            keccak256(abi.encode(BIND_KEY, account, keccak256(spki), keccak256(proof), notAfter, seq, deadline));
        _said(account, message, seq, deadline, accountSignature);
        bytes32 key = sha256(spki);
        notAfterOf[account][key] = notAfter;
        emit KeyBound(account, key, spki, proof, notAfter, seq);
    }

    function unbindKey(address account, bytes32 key, uint32 seq, uint64 deadline, bytes calldata accountSignature)
        external
    {
        _said(account, keccak256(abi.encode(UNBIND_KEY, account, key, seq, deadline)), seq, deadline, accountSignature);
        delete notAfterOf[account][key];
        emit KeyUnbound(account, key, seq);
    }

    /// @dev Reverts unless `account` says `message` as its number `seq`.
    function _said(address account, bytes32 message, uint32 seq, uint64 deadline, bytes calldata signature) private {
        if (account == address(0)) revert ZeroAddress();
        uint32 last = seqOf[account];
        if (seq <= last) revert SeqNotRising(last, seq);
        _checkSigned(account, message, deadline, signature);
        seqOf[account] = seq;
    }

    function _domainNameAndVersion() internal pure override returns (string memory, string memory) {
        return ("PACS Bridge Key Bindings", "1");
    }
}
