// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {IAnchors} from "../solidity/interfaces/IAnchors.sol";
import {Anchors} from "../solidity/Anchors.sol";

contract AnchorsTest is Base {
    Anchors internal anchors;
    bytes32 internal constant LOG = keccak256("log");

    event Anchored(
        address indexed source, bytes32 indexed log, uint256 number, bytes32 head, uint64 records, bytes32 previous
    );

    function setUp() public override {
        super.setUp();
        anchors = new Anchors(address(sources));
    }

    function _head(uint256 number) internal pure returns (bytes32) {
        return keccak256(abi.encode("head", number));
    }

    function _anchor(address sender, bytes32 log, bytes32 head, uint64 records) internal {
        vm.prank(sender);
        anchors.anchor(log, head, records);
    }

    function testFuzz_RevertWhen_theSenderIsNoSource(address sender) public {
        vm.assume(sources.sourceOf(sender) == address(0));
        vm.prank(sender);
        vm.expectRevert(abi.encodeWithSelector(IAnchors.NotSource.selector, sender));
        anchors.anchor(LOG, _head(1), 1);
    }

    function test_RevertWhen_theSourceIsSuspended() public {
        _anchor(alice, LOG, _head(1), 1);
        _suspend(alice);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IAnchors.NotSource.selector, alice));
        anchors.anchor(LOG, _head(2), 2);
        assertTrue(anchors.anchorCount(alice) == 1);
    }

    function test_RevertWhen_somethingIsZero() public {
        vm.prank(alice);
        vm.expectRevert(IAnchors.ZeroHead.selector);
        anchors.anchor(0, _head(1), 1);
        vm.prank(alice);
        vm.expectRevert(IAnchors.ZeroHead.selector);
        anchors.anchor(LOG, 0, 1);
        vm.expectRevert(abi.encodeWithSelector(IAnchors.NotSource.selector, address(0)));
        new Anchors(address(0));
    }

    function testFuzz_RevertWhen_theLogDidNotGrow(uint64 known, uint64 records) public {
        vm.assume(known > 0 && records <= known);
        _anchor(alice, LOG, _head(1), known);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(IAnchors.NotMore.selector, LOG, records, known));
        anchors.anchor(LOG, _head(2), records);
    }

    function test_RevertWhen_thereIsNoSuchAnchor() public {
        _anchor(alice, LOG, _head(1), 1);
        vm.expectRevert();
        anchors.anchorAt(alice, 1);
        vm.expectRevert();
        anchors.anchorAt(bob, 0);
    }

    function test_anOperatorAnchorsForItsSource() public {
        address operator = vm.addr(300);
        vm.prank(alice);
        sources.authorizeOperator(operator);
        vm.prank(operator);
        sources.acceptOperator(alice);
        vm.expectEmit(true, true, true, true, address(anchors));
        emit Anchored(alice, LOG, 0, _head(1), 5, 0);
        _anchor(operator, LOG, _head(1), 5);
        vm.expectEmit(true, true, true, true, address(anchors));
        emit Anchored(alice, LOG, 1, _head(2), 6, _head(1));
        _anchor(alice, LOG, _head(2), 6);
        assertTrue(anchors.anchorCount(operator) == 0);
    }

    /// @dev Whatever is anchored stays, in order, linked per log, and nobody reaches into another's.
    function testFuzz_everyAnchorStaysAndIsLinked(uint64[8] memory steps, bool[8] memory second, bool[8] memory ofBob)
        public
    {
        bytes32[2][2] memory heads;
        uint64[2][2] memory lengths;
        uint256[2] memory made;
        for (uint256 i = 0; i < 8; ++i) {
            uint256 who = ofBob[i] ? 1 : 0;
            uint256 which = second[i] ? 1 : 0;
            address source = ofBob[i] ? bob : alice;
            bytes32 log = second[i] ? keccak256("second") : LOG;
            uint64 records = lengths[who][which] + 1 + steps[i] % 1000;
            vm.warp(NOW + i);
            _anchor(source, log, _head(i), records);
            (bytes32 itsLog, bytes32 head, uint64 length, bytes32 previous, uint64 time) = anchors.anchorAt(source, made[who]);
            assertTrue(itsLog == log && head == _head(i) && length == records && time == NOW + i);
            assertTrue(previous == heads[who][which]);
            made[who] += 1;
            heads[who][which] = head;
            lengths[who][which] = records;
            assertTrue(anchors.anchorCount(source) == made[who]);
        }
        for (uint256 which = 0; which < 2; ++which) {
            bytes32 log = which == 1 ? keccak256("second") : LOG;
            (bytes32 head, uint64 records) = anchors.latest(alice, log);
            assertTrue(head == heads[0][which] && records == lengths[0][which]);
            (head, records) = anchors.latest(bob, log);
            assertTrue(head == heads[1][which] && records == lengths[1][which]);
        }
        assertTrue(anchors.sources() == address(sources));
    }
}
