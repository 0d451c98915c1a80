// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// @title How a word is given
/// @notice Actions that belong to somebody take an EIP-712 signature and may be sent by anybody. Who acts may also send the
/// transaction itself and leave the signature empty.
interface ISigned {
    /// @notice The message's deadline has passed.
    error DeadlinePassed(uint64 deadline);
    /// @notice `signer` did not sign this message.
    error BadSignature(address signer);
    /// @notice The sequence number does not rise.
    error SeqNotRising(uint32 current, uint32 given);
}
