// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {ISources} from "../solidity/interfaces/ISources.sol";

contract SourcesOperatorsTest is Base {
    address internal immutable operator = vm.addr(300);

    function _employ(address source, address worker) internal {
        vm.prank(source);
        sources.authorizeOperator(worker);
        vm.prank(worker);
        sources.acceptOperator(source);
    }

    function test_RevertWhen_notDefined() public {
        vm.prank(mallory);
        vm.expectRevert(abi.encodeWithSelector(ISources.NotDefined.selector, mallory));
        sources.authorizeOperator(operator);
    }

    function test_RevertWhen_notAuthorized() public {
        vm.prank(mallory);
        vm.expectRevert(abi.encodeWithSelector(ISources.NotAuthorized.selector, alice, mallory));
        sources.acceptOperator(alice);
    }

    function test_RevertWhen_theKeyActsForAnother() public {
        _employ(alice, operator);
        vm.prank(bob);
        sources.authorizeOperator(operator);
        vm.prank(operator);
        vm.expectRevert(abi.encodeWithSelector(ISources.KeyInUse.selector, operator, alice));
        sources.acceptOperator(bob);
    }

    function test_RevertWhen_anIdentityWouldSpeakForAnother() public {
        vm.prank(admin);
        sources.admit(mallory);
        vm.prank(alice);
        sources.authorizeOperator(mallory);
        vm.prank(mallory);
        vm.expectRevert(abi.encodeWithSelector(ISources.KeyInUse.selector, mallory, mallory));
        sources.acceptOperator(alice);
    }

    function test_RevertWhen_anOperatorWouldBecomeASource() public {
        _employ(alice, operator);
        vm.prank(admin);
        vm.expectRevert(abi.encodeWithSelector(ISources.KeyInUse.selector, operator, alice));
        sources.admit(operator);
    }

    function test_RevertWhen_revokingAnothersOperator() public {
        _employ(alice, operator);
        vm.prank(bob);
        vm.expectRevert(abi.encodeWithSelector(ISources.NotAuthorized.selector, bob, operator));
        sources.revokeOperator(operator);
    }

    function test_RevertWhen_anOperatorActsAsTheIdentity() public {
        _employ(alice, operator);
        vm.prank(operator);
        vm.expectRevert(abi.encodeWithSelector(ISources.NotDefined.selector, operator));
        sources.changeEndpoint("https://redirected.example");
        vm.prank(operator);
        vm.expectRevert(abi.encodeWithSelector(ISources.NotDefined.selector, operator));
        sources.authorizeOperator(mallory);
    }

    function test_RevertWhen_aWithdrawnOfferIsAccepted() public {
        vm.prank(alice);
        sources.authorizeOperator(operator);
        vm.prank(alice);
        sources.revokeOperator(operator);
        vm.prank(operator);
        vm.expectRevert(abi.encodeWithSelector(ISources.NotAuthorized.selector, alice, operator));
        sources.acceptOperator(alice);
    }

    function test_anOfferAloneClaimsNothing() public {
        vm.prank(bob);
        sources.authorizeOperator(operator);
        assertEq(sources.sourceOf(operator), address(0));
        _employ(alice, operator);
        assertEq(sources.sourceOf(operator), alice);
    }

    function test_rotationKeepsTheSource() public {
        _employ(alice, operator);
        vm.prank(alice);
        sources.revokeOperator(alice);
        assertEq(sources.sourceOf(alice), address(0));
        assertEq(sources.sourceOf(operator), alice);
        address next = vm.addr(301);
        _employ(alice, next);
        vm.prank(alice);
        sources.revokeOperator(operator);
        assertEq(sources.sourceOf(operator), address(0));
        assertEq(sources.sourceOf(next), alice);
        _suspend(alice);
        assertEq(sources.sourceOf(next), address(0));
    }
}
