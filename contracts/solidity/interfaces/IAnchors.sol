// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// @title Anchors
/// @notice Heads of logs that sources keep for themselves, such as their audit trails. Whoever is shown a log later can tell whether
/// it still begins with everything that it held when its head was anchored. A head is a digest and a number of records: neither
/// tells anything about what was recorded.
///
/// A log is named by 32 bytes that its source chooses, and only grows. A source that has lost a log begins another; the anchors of
/// the first stay and say so.
interface IAnchors {
    /// @notice `source` stated that its `log` has `records` records and this `head`. It is the source's anchor number `number`, counted
    /// from zero over all its logs; `previous` is the head that it anchored for the same log before, zero if none.
    event Anchored(
        address indexed source, bytes32 indexed log, uint256 number, bytes32 head, uint64 records, bytes32 previous
    );

    /// @notice The caller does not act for an active source.
    error NotSource(address caller);
    /// @notice A log's name or its head is zero.
    error ZeroHead();
    /// @notice The log has `known` anchored records already, and `records` are not more.
    error NotMore(bytes32 log, uint64 records, uint64 known);

    /// @notice States head and length of a log of the caller's source. Any operator of the source may.
    function anchor(bytes32 log, bytes32 head, uint64 records) external;

    /// @notice How many anchors `source` ever made.
    function anchorCount(address source) external view returns (uint256);
    /// @notice The anchor of `source` with this number, counted from zero: the log, its head, its records, the head anchored for that
    /// log before (zero if none), and the time of the block.
    function anchorAt(address source, uint256 number)
        external
        view
        returns (bytes32 log, bytes32 head, uint64 records, bytes32 previous, uint64 time);
    /// @notice Head and length of `log` of `source` as anchored last; zero if never.
    function latest(address source, bytes32 log) external view returns (bytes32 head, uint64 records);
    /// @notice The Sources contract that is asked who acts for whom.
    function sources() external view returns (address);
}
