// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {IAnchors} from "./interfaces/IAnchors.sol";
import {ISources} from "./interfaces/ISources.sol";

/// @title Anchors
/// @notice See {IAnchors}.
contract Anchors is IAnchors {
    struct Anchor {
        bytes32 log;
        bytes32 head;
        bytes32 previous;
        uint64 records;
        uint64 time;
    }

    struct Latest {
        bytes32 head;
        uint64 records;
    }

    ISources private _registry;
    mapping(address source => Anchor[]) private _anchors;
    mapping(address source => mapping(bytes32 log => Latest)) private _latest;

    constructor(address registry) {
        if (registry == address(0)) revert NotSource(registry);
        _registry = ISources(registry);
    }

    function anchor(bytes32 log, bytes32 head, uint64 records) external {
        address source = _registry.sourceOf(msg.sender);
        if (source == address(0)) revert NotSource(msg.sender);
        if (log == 0 || head == 0) revert ZeroHead();
        Latest storage known = _latest[source][log];
        if (records <= known.records) revert NotMore(log, records, known.records);
        bytes32 previous = known.head;
        known.head = head;
        known.records = records;
        Anchor[] storage all = _anchors[source];
        emit Anchored(source, log, all.length, head, records, previous);
        all.push(Anchor(log, head, previous, records, uint64(block.timestamp)));
    }

    function anchorCount(address source) external view returns (uint256) {
        return _anchors[source].length;
    }

    function anchorAt(address source, uint256 number)
        external
        view
        returns (bytes32 log, bytes32 head, uint64 records, bytes32 previous, uint64 time)
    {
        Anchor storage found = _anchors[source][number];
        return (found.log, found.head, found.records, found.previous, found.time);
    }

    function latest(address source, bytes32 log) external view returns (bytes32 head, uint64 records) {
        Latest storage known = _latest[source][log];
        return (known.head, known.records);
    }

    function sources() external view returns (address) {
        return address(_registry);
    }
}
