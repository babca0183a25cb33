# SPDX-License-Identifier: MIT
"""What is read of a disassembly, here of two of our own kernels, the second one cut short."""

from __future__ import annotations

import shutil

import kernels
import pytest

RESOURCES = """
Resource usage:
 Common:
  GLOBAL:0
 Function _ZN12_GLOBAL__N_110set_windowEP22fastreplay_cuda_windowmm:
  REG:10 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:552 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _ZN12_GLOBAL__N_16gatherE24fastreplay_cuda_sampling:
  REG:32 STACK:72 SHARED:0 LOCAL:8 CONSTANT[0]:608 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
CODE = """
	code for sm_90
		Function : _ZN12_GLOBAL__N_110set_windowEP22fastreplay_cuda_windowmm
	.headerflags	@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0010*/                   LDC.64 R2, c[0x0][0x210] ;          /* 0x00008400ff027b82 */
                                                                       /* 0x000e220000000a00 */
        /*0050*/                   STG.E.64 desc[UR4][R2.64], R4 ;     /* 0x0000000402007986 */
        /*0070*/                   EXIT ;                              /* 0x000000000000794d */
        /*0080*/                   NOP;                                /* 0x0000000000007918 */
		..........

		Function : _ZN12_GLOBAL__N_16gatherE24fastreplay_cuda_sampling
        /*0030*/                   LDG.E.64 R2, desc[UR8][R2.64+0x8] ;
        /*0060*/              @!P0 EXIT ;
        /*0068*/                   CALL.REL.NOINC 0x1400 ;
        /*0070*/                   ISETP.NE.U32.AND P0, PT, R3, RZ, PT ;
        /*0080*/                   LDG.E.128 R4, desc[UR8][R10.64] ;
        /*0090*/               @P1 BRA 0x270 ;
        /*00a0*/                   LDG.E.128.CONSTANT R12, desc[UR8][R10.64+0x200] ;
        /*00b0*/                   LDG.E R16, desc[UR8][R20.64] ;
        /*00c0*/                   STL [R1+0x4], R30 ;
        /*00d0*/                   LDG.E.U8 R17, desc[UR8][R20.64+0x4] ;
        /*00d8*/                   LD.E R18, desc[UR8][R22.64] ;
        /*00e0*/                   STG.E.128 desc[UR8][R24.64], R4 ;
        /*00f0*/                   BRA 0x30 ;
		..........
"""


def test_what_waits_and_what_it_takes() -> None:
    setting, gathering = kernels.read_kernels(RESOURCES, CODE)
    assert setting == kernels.Kernel("_ZN12_GLOBAL__N_110set_windowEP22fastreplay_cuda_windowmm", "sm_90", 10, 0, 0, 3)
    assert (gathering.registers, gathering.stack_bytes, gathering.local_bytes) == (32, 72, 8)
    assert (gathering.instructions, gathering.spills, gathering.calls, gathering.generic_loads) == (13, 1, 1, 1)
    # Not the one whose result the comparison used, nor the one after the store.
    assert (gathering.loads_in_flight, gathering.bytes_in_flight) == (3, 16 + 16 + 4)


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="names stay as linkers know them")
def test_kernels_have_their_names() -> None:
    assert (
        "| set_window, sm_90 | 10 | 0 | 0 | 3 | 0 | 0 | 0 | 0 |\n| gather, sm_90 | 32 | 80 | 1 | 13 | 1 | 1 | 3 | 36 |"
        in str(kernels.to_table(kernels.read_kernels(RESOURCES, CODE)))
    )
    name = "_ZN12_GLOBAL__N_14moveIN10fastreplay4KindIffLb0EEEEEvNS1_5TableE"
    assert kernels._readable(name) == "move<Kind<float, float, false> >"


def test_without_a_disassembler_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert kernels.main([]) == 2
    assert capsys.readouterr().err.startswith("kernels: needs cuobjdump and ")
