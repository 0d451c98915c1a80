// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ECDSA} from "solady/src/utils/ECDSA.sol";
import {EIP712} from "solady/src/utils/EIP712.sol";
import {SignatureCheckerLib} from "solady/src/utils/SignatureCheckerLib.sol";
import {ISigned} from "./interfaces/ISigned.sol";

/// @title What all contracts with signed messages share
/// @dev Nothing is keyed by signature bytes: signatures are malleable and EIP-1271 signers may have many for one message. Replays
/// are stopped by sequence numbers alone.
abstract contract Signed is ISigned, EIP712 {
    /// @dev Reverts unless `signer` says `message`: by signature, or by sending the transaction itself without one.
    function _checkSigned(address signer, bytes32 message, uint64 deadline, bytes calldata signature) internal view {
        if (block.timestamp > deadline) revert DeadlinePassed(deadline);
        if (signature.length == 0 && msg.sender == signer) return;
        if (!_isSigned(signer, _hashTypedData(message), signature)) revert BadSignature(signer);
    }

    /// @dev Recovering comes first: it spares ordinary keys the price of looking for code at their address. A contract whose
    /// address is also the address of a known key cannot be made. EIP-1271 signers are asked by STATICCALL, so they cannot change
    /// anything meanwhile; the gas they burn is the sender's to limit.
    function _isSigned(address signer, bytes32 digest, bytes calldata signature) internal view returns (bool) {
        if (signer == address(0)) return false;
        if (ECDSA.tryRecoverCalldata(digest, signature) == signer) return true;
        return SignatureCheckerLib.isValidERC1271SignatureNowCalldata(signer, digest, signature);
    }

    /// @dev Without this, Solady caches the domain in immutables and the runtime code differs at every address, so that its
    /// hash could not be compared with the published artifact.
    function _domainNameAndVersionMayChange() internal pure override returns (bool) {
        return true;
    }
}
