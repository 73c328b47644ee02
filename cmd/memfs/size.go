package main

import (
	"bufio"
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// size is a number of bytes on the command line: a pflag.Value.
type size uint64

func (s *size) Set(text string) error {
	n, err := parseSize(text, ramBytes())
	*s = size(n)
	return err
}

func (s *size) String() string {
	if *s == 0 {
		return ""
	}
	return formatSize(uint64(*s))
}

func (*size) Type() string { return "SIZE" }

const sizeUnits = "KMGTP"

// parseSize takes a number of bytes with a binary unit (64M, 64MiB, 1.5G, 65536) or a percentage of ram (25%).
func parseSize(text string, ram uint64) (uint64, error) {
	bad := func(why string) (uint64, error) {
		return 0, fmt.Errorf("not a size: %s; write a number with K, M, G or T (binary), or a percentage of RAM", why)
	}
	digits := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ%")
	unit := text[len(digits):]
	number, err := strconv.ParseFloat(digits, 64)
	if digits == "" || err != nil || strings.ContainsAny(digits, "_xX+") {
		return bad("no number")
	}
	if !(number > 0) {
		return bad("not above zero")
	}
	var scale float64
	switch {
	case unit == "%":
		if number > 100 {
			return bad("more than all RAM")
		}
		// Whole MiB, so that it reads well where it is printed.
		n := uint64(number / 100 * float64(ram))
		if n > 16<<20 {
			n &^= 1<<20 - 1
		}
		return n, nil
	case unit == "":
		if whole, err := strconv.ParseUint(digits, 10, 63); err == nil {
			return whole, nil // beyond what a float holds exactly
		}
		scale = 1
	default:
		power := strings.IndexByte(sizeUnits, byte(strings.ToUpper(unit)[0]))
		rest := unit[1:]
		if power < 0 || rest != "" && rest != "iB" && rest != "ib" {
			return bad(fmt.Sprintf("unit %q is unknown", unit))
		}
		scale = math.Pow(1024, float64(power+1))
	}
	bytes := number * scale
	if bytes >= 1<<62 {
		return bad("too large")
	}
	if bytes < 1 {
		return bad("less than a byte")
	}
	return uint64(bytes), nil
}

// formatSize writes a number of bytes with the largest binary unit that leaves it whole: parseSize reads it back.
func formatSize(n uint64) string {
	unit := -1
	for n != 0 && n%1024 == 0 && unit+1 < len(sizeUnits) {
		n /= 1024
		unit++
	}
	if unit < 0 {
		return strconv.FormatUint(n, 10)
	}
	return strconv.FormatUint(n, 10) + sizeUnits[unit:unit+1]
}

// roundSize writes a number of bytes for people, with three digits at least of its value and one decimal at most.
func roundSize(n uint64) string {
	value, unit := float64(n), -1
	for value >= 1024 && unit+1 < len(sizeUnits) {
		value /= 1024
		unit++
	}
	text := strings.TrimSuffix(strconv.FormatFloat(value, 'f', 1, 64), ".0")
	if unit < 0 {
		return text
	}
	return text + sizeUnits[unit:unit+1]
}

// ramBytes is the memory that there is for us: the machine's, or less where our control group is given less.
func ramBytes() uint64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	ram := uint64(info.Totalram) * uint64(info.Unit)
	return min(ram, cgroupLimit("/proc/self/cgroup", "/sys/fs/cgroup"))
}

// cgroupLimit is the smallest memory.max on the way from our control group to the root; MaxUint64 for none.
func cgroupLimit(self, root string) uint64 {
	limit := uint64(math.MaxUint64)
	text, err := os.ReadFile(self)
	if err != nil {
		return limit
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		group, ok := strings.CutPrefix(lines.Text(), "0::")
		if !ok {
			continue
		}
		for {
			if text, err := os.ReadFile(filepath.Join(root, group, "memory.max")); err == nil {
				if n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil {
					limit = min(limit, n)
				}
			}
			if group == "/" || group == "." || group == "" {
				break
			}
			group = filepath.Dir(group)
		}
	}
	return limit
}

// memAvailable is what /proc/meminfo says can be had without swapping.
func memAvailable() (bytes uint64, ok bool) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemAvailable:" {
			kB, err := strconv.ParseUint(f[1], 10, 54)
			return kB << 10, err == nil
		}
	}
	return 0, false
}
