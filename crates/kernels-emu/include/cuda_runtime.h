// The language itself is in cuda_emu.h.
#pragma once
#include "cuda_emu.h"
