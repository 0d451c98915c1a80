// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ISigned} from "./ISigned.sol";

/// @title Key bindings: P-256 keys that sign retrievals for an account
/// @notice Smart cards, hospital HSMs and browsers hold P-256 keys, not keys of the ledger. An *account* states here which of them sign requests
/// for it (IHE ITI-43), each until a time, and takes that back at once, without the key. Both are EIP-712 messages that anybody may send.
///
/// Messages (domain name "PACS Bridge Key Bindings", version "1", chain id, this contract):
/// - `BindKey(address account,bytes spki,bytes proof,uint64 notAfter,uint32 seq,uint64 deadline)`
/// - `UnbindKey(address account,bytes32 key,uint32 seq,uint64 deadline)`
///
/// `seq` rises strictly per account over both, so what was overtaken can never be played later. `deadline` is the last second at which a message
/// is good, `notAfter` the last second of a binding. A key is named by the SHA-256 of its SubjectPublicKeyInfo (`spki`) with the curve's name and
/// the uncompressed point, which is 91 octets.
///
/// `proof` is r and s of the key's own ECDSA signature with SHA-256 over "PACS bridge key binding", a zero octet, chain id (32 octets), this
/// contract (20), the account (20) and `key` (32). **This contract does not verify it**: London has no precompile for P-256. Whoever
/// follows these events does, and leaves out a binding whose proof is wrong; all see the same octets, so all come to the same answer.
///
/// Inconvenient facts:
/// - Which keys act for which account is public to every member of the network, for ever.
/// - `notAfterOf` tells what the account said, not that the proof is right: ask a bridge whose a key is.
/// - A key whose holder proves it for two accounts is bound to both. Bridges take the binding that is older and still holds.
/// - An account's newest word about a key counts alone: one with a wrong proof ends what held before.
interface IKeyBindings is ISigned {
    /// @notice `account` says that `key` signs for it until `notAfter`, which is true if `proof` is right.
    event KeyBound(
        address indexed account, bytes32 indexed key, bytes spki, bytes proof, uint64 notAfter, uint32 seq
    );
    /// @notice `account` says that `key` does not sign for it.
    event KeyUnbound(address indexed account, bytes32 indexed key, uint32 seq);

    /// @notice A zero address where an account or a contract must be.
    error ZeroAddress();
    /// @notice A SubjectPublicKeyInfo of a P-256 key has 91 octets.
    error SpkiLength(uint256 length);
    /// @notice A proof has 64 octets.
    error ProofLength(uint256 length);
    /// @notice The binding would be over already.
    error BadEnd(uint64 notAfter);

    /// @notice The Registry of the consortium whose keys these are.
    function registry() external view returns (address);

    /// @notice Says that a key signs for `account`, instead of what it said of this key before.
    function bindKey(
        address account,
        bytes calldata spki,
        bytes calldata proof,
        uint64 notAfter,
        uint32 seq,
        uint64 deadline,
        bytes calldata accountSignature
    ) external;

    /// @notice Says that a key does not sign for `account`, whether it ever did: that voids a `BindKey` that was signed and not sent.
    function unbindKey(address account, bytes32 key, uint32 seq, uint64 deadline, bytes calldata accountSignature)
        external;

    /// @notice The last second for which `account` bound `key`, past or not; zero: not bound.
    function notAfterOf(address account, bytes32 key) external view returns (uint64);

    /// @notice The newest number that `account` used.
    function seqOf(address account) external view returns (uint32);
}
