package mm

import (
	"fmt"
	"sort"
	"strings"

	"memfs/mm/pfn"
)

// MinMemory is the smallest budget that a mount works in.
const MinMemory = 16 << 20

// InodeBytes is what one inode costs in records, its name not counted: node, section, segment and directory entry.
const InodeBytes = 640

// Budget is what a memory size is divided into: the arithmetic that `memfs info`, `.proc/limits` and the start-up line
// show. Everything the mount costs the host is in Memory, save the daemon's code and request buffers.
type Budget struct {
	Memory    uint64 // bytes, as asked for
	Size      uint64 // bytes that files may hold; 0 = what the commit limit allows
	HostBytes uint64 // share for the host kernel's cached copies of our pages
	HostDirty uint64 // of which for what programs have written and the host has not sent us
	PFNBytes  uint64 // PFN database
	Frames    uint64 // frames of the arena; the records below take over frames as they grow
	Reserve   uint64 // frames never promised, so that faults can make progress

	PageFile  uint64 // slots of all page files at their maximum
	SlotBytes uint64 // records of that many slots, and of those of compressed memory
	PTEBytes  uint64 // records of that many prototype PTEs, in full leaves
	Inodes    uint64 // nr_inodes
	InodeMax  uint64 // bytes of records if all inodes are in use

	Compressed uint64 // bytes of frames that compressed pages may take

	CommitLimit uint64 // pages that can be promised
}

// Plan divides c.Memory, or says in one line why it cannot be done and what would do.
func Plan(c Config) (Budget, error) {
	share := c.HostShare
	if share == 0 {
		share = 1.0 / 3
	}
	b := Budget{Memory: c.Memory, Size: c.Size, Inodes: c.Inodes}
	if b.Memory < MinMemory {
		return b, fmt.Errorf("memory %s is too small: at least %s is needed", size(b.Memory), size(MinMemory))
	}
	if share < 0.05 || share > 0.9 {
		return b, fmt.Errorf("host share %.2f is out of range: it must lie between 0.05 and 0.9", share)
	}
	if b.Inodes == 0 {
		b.Inodes = b.Memory / PageSize
	}
	b.HostBytes = uint64(float64(b.Memory)*share) / PageSize * PageSize
	if c.DirtyBounded {
		b.HostDirty = b.HostBytes / 4
	}
	for _, f := range c.PageFiles {
		b.PageFile += f.Max
	}
	b.Frames = (b.Memory - b.HostBytes) / (PageSize + pfn.EntrySize)
	b.PFNBytes = b.Frames * pfn.EntrySize
	b.SlotBytes = uint64(float64(b.PageFile) * c.slotBytes())
	if z := c.Compressed; z != nil {
		b.Compressed = z.Limit
		b.SlotBytes += uint64(float64(z.slots()) * compressedSlotBytes)
		if most := b.Frames / 5 * 4 * PageSize; z.Limit > most {
			return b, fmt.Errorf("%s of compressed memory is too much: at most four fifths of the frames, %s", size(z.Limit), size(most))
		}
	}
	b.PTEBytes = b.tables()
	b.InodeMax = b.Inodes * InodeBytes
	b.Reserve = max(64, b.Frames/64)
	b.CommitLimit = b.Frames - b.Reserve - min(pagesOf(b.SlotBytes), b.Frames-b.Reserve) + b.PageFile
	if records := b.PFNBytes + b.SlotBytes + b.PTEBytes; records > b.Memory/2 {
		most := uint64(float64(b.Memory/2-b.PFNBytes) / (c.slotBytes() + float64(leafCost(3))/ViewPages) * PageSize)
		return b, fmt.Errorf("the records of a %s page file would take %s, over half of %s of memory: give it at most %s, or more memory",
			size(b.PageFile*PageSize), size(records), size(b.Memory), size(most))
	}
	return b, nil
}

// hostPages is the limit of the system cache's working set: what the host may hold besides what it has not sent us.
func (b Budget) hostPages() uint64 { return (b.HostBytes - b.HostDirty) / PageSize }

// memoryFor is the least memory in whole MiB, up to c.Memory, whose division is good enough.
func memoryFor(c Config, enough func(Budget) bool) Budget {
	const unit = 1 << 20
	low, high := uint64(MinMemory/unit), (c.Memory+unit-1)/unit
	n := low + uint64(sort.Search(int(high-min(low, high)), func(i int) bool {
		c.Memory = (low + uint64(i)) * unit
		b, err := Plan(c)
		return err == nil && enough(b)
	}))
	c.Memory = n * unit
	b, _ := Plan(c)
	return b
}

// String is the arithmetic in a few lines.
func (b Budget) String() string {
	var s strings.Builder
	line := func(name string, bytes uint64, note string, args ...any) {
		fmt.Fprintf(&s, "%-14s %10s   %s\n", name, size(bytes), fmt.Sprintf(note, args...))
	}
	line("memory", b.Memory, "all that the mount may cost the host")
	line("host cache", b.HostBytes, "the host kernel's cached copies, %s of it for data not yet sent to us", size(b.HostDirty))
	line("pfn database", b.PFNBytes, "%d bytes a frame", pfn.EntrySize)
	line("frames", b.Frames*PageSize, "%d frames; the records below take frames over as they grow", b.Frames)
	line("page file", b.PageFile*PageSize, "%d slots; full, its records take %s", b.PageFile, size(b.SlotBytes))
	if b.Compressed > 0 {
		line("compressed", b.Compressed, "of the frames, for pages that compress, before they go to the page file")
	}
	line("page tables", b.PTEBytes, "at the commit limit")
	line("inodes", b.InodeMax, "if all %d are in use", b.Inodes)
	line("commit limit", b.CommitLimit*PageSize, "frames less %d in reserve and the slots' records, plus page file", b.Reserve)
	if b.Size > 0 {
		line("size", b.Size, "the most that files may hold")
	} else {
		fmt.Fprintf(&s, "%-14s %10s   %s\n", "size", "no limit", "files may hold what the commit limit allows")
	}
	return s.String()
}

// size prints bytes in binary units, exactly where that is short.
func size(n uint64) string {
	units := []string{"", "K", "M", "G", "T", "P", "E"}
	f, u := float64(n), 0
	for f >= 1024 && u < len(units)-1 {
		f /= 1024
		u++
	}
	if f == float64(uint64(f)) {
		return fmt.Sprintf("%d%s", uint64(f), units[u])
	}
	return fmt.Sprintf("%.1f%s", f, units[u])
}
