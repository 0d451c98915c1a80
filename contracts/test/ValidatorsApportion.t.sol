// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ValidatorsBase} from "./ValidatorsBase.sol";
import {IValidators} from "../solidity/interfaces/IValidators.sol";

/// @dev Properties of the rule by which seats are given, for any weights.
contract ValidatorsApportionTest is ValidatorsBase {
    /// @dev Few and small ones as often as many and large ones.
    function _numbers(bytes32 seed, uint256 count, uint256 most) private pure returns (uint256[] memory numbers) {
        numbers = new uint256[](count);
        for (uint256 i = 0; i < count; ++i) {
            numbers[i] = 1 + uint256(keccak256(abi.encode(seed, i))) % most;
        }
    }

    function _sum(uint256[] memory numbers) private pure returns (uint256 sum) {
        for (uint256 i = 0; i < numbers.length; ++i) {
            sum += numbers[i];
        }
    }

    function _room(uint256[] memory keys, uint256 total) private pure returns (uint256 room) {
        for (uint256 i = 0; i < keys.length; ++i) {
            room += keys[i] < (total - 1) / 3 ? keys[i] : (total - 1) / 3;
        }
    }

    function testFuzz_eachHasLessThanAThirdAndNoMoreThanItsKeys(bytes32 seed, uint8 sites, uint8 most, uint64 heaviest)
        public
        view
    {
        uint256 count = 4 + uint256(sites) % 29;
        uint256[] memory weights = _numbers(seed, count, uint256(heaviest) + 1);
        uint256[] memory keys = _numbers(keccak256(abi.encode(seed)), count, 16);
        uint256[] memory given = validators.apportion(weights, keys, most);
        uint256 total = _sum(given);
        assertTrue(total >= 4 && total <= 64);
        assertTrue(total <= most || total == 4);
        for (uint256 i = 0; i < count; ++i) {
            assertTrue(given[i] * 3 < total && given[i] <= keys[i]);
        }
        // No larger number could be filled.
        for (uint256 larger = total + 1; larger <= most && larger <= 64; ++larger) {
            assertTrue(_room(keys, larger) < larger);
        }
    }

    function testFuzz_whoGainsWeightLosesNoSeatAndTheOthersGainNone(
        bytes32 seed,
        uint8 sites,
        uint8 most,
        uint32 heaviest,
        uint32 more
    ) public view {
        uint256 count = 1 + uint256(sites) % 32;
        uint256[] memory weights = _numbers(seed, count, uint256(heaviest) + 1);
        uint256[] memory keys = _numbers(keccak256(abi.encode(seed)), count, 16);
        uint256[] memory before = validators.apportion(weights, keys, most);
        uint256 who = uint256(seed) % count;
        weights[who] += more;
        uint256[] memory later = validators.apportion(weights, keys, most);
        assertTrue(later[who] >= before[who]);
        assertEq(_sum(later), _sum(before));
    }

    /// @dev Nobody is further than one from its quota, where nobody is at a limit.
    function testFuzz_seatsAreInProportion(uint64 a, uint64 b, uint64 c, uint64 d) public view {
        uint256[] memory weights = new uint256[](4);
        (weights[0], weights[1], weights[2], weights[3]) = (1 + uint256(a), 1 + uint256(b), 1 + uint256(c), 1 + uint256(d));
        uint256[] memory given = validators.apportion(weights, _numbers(0, 4, 1), 64);
        assertEq(_sum(given), 4);
        uint256[] memory keys = new uint256[](4);
        (keys[0], keys[1], keys[2], keys[3]) = (16, 16, 16, 16);
        given = validators.apportion(weights, keys, 40);
        assertEq(_sum(given), 40);
        uint256 sum = _sum(weights);
        for (uint256 i = 0; i < 4; ++i) {
            if (weights[i] * 40 >= 13 * sum) assertEq(given[i], 13);
        }
        for (uint256 i = 0; i < 4; ++i) {
            for (uint256 j = 0; j < 4; ++j) {
                if (weights[i] >= weights[j]) assertTrue(given[i] + (i < j ? 0 : 1) >= given[j]);
            }
        }
    }

    function test_largestRemaindersWorkedOut() public view {
        uint256[] memory weights = new uint256[](5);
        uint256[] memory keys = new uint256[](5);
        for (uint256 i = 0; i < 5; ++i) {
            keys[i] = 16;
        }
        // 13 seats, at most four each, for 100: quotas 4 (of 5.2), 3.94, 2.44, 1.69, 0.94 after the first is filled.
        (weights[0], weights[1], weights[2], weights[3], weights[4]) = (40, 26, 16, 11, 7);
        uint256[] memory given = validators.apportion(weights, keys, 13);
        assertTrue(given[0] == 4 && given[1] == 4 && given[2] == 2 && given[3] == 2 && given[4] == 1);
    }

    /// @dev Of one, two or three the largest has a third at least, whatever is done; equal numbers are the least that it can have.
    function testFuzz_ofFewerThanFourAllHaveTheSame(bytes32 seed, uint8 sites, uint8 most) public view {
        uint256 count = 1 + uint256(sites) % 3;
        uint256[] memory keys = _numbers(seed, count, 16);
        uint256[] memory given = validators.apportion(_numbers(keccak256(abi.encode(seed)), count, 1000), keys, most);
        for (uint256 i = 0; i < count; ++i) {
            assertEq(given[i], given[0]);
            assertTrue(given[i] >= 1 && given[i] <= keys[i]);
            assertTrue(3 * given[i] >= _sum(given) && count * given[i] == _sum(given));
        }
        assertTrue(_sum(given) <= most || given[0] == 1);
    }

    function test_RevertWhen_thereIsNoSiteOrOneWithoutKeys() public {
        uint256[] memory one = new uint256[](1);
        uint256[] memory nobody = new uint256[](0);
        vm.expectRevert(IValidators.BadSites.selector);
        validators.apportion(nobody, nobody, 4);
        vm.expectRevert(IValidators.BadSites.selector);
        validators.apportion(one, nobody, 4);
        vm.expectRevert(IValidators.BadSites.selector);
        validators.apportion(one, one, 4);
    }
}
