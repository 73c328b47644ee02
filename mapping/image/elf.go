package image

import (
	"debug/elf"
	"slices"
)

// Sizes of ELF's structures, by class.
type elfClass struct {
	bits             int
	header, program  int // of Ehdr and Phdr
	dyn, rel, rela   int
	word             uint64
	phoff, phentsize int // where they are in Ehdr
	entry            int
	infoType         func(info uint64) uint32
	offset, vaddr    int // where they are in Phdr
	filesz, memsz    int
	flags            int
	relativeOf       map[elf.Machine]uint32 // R_*_RELATIVE
	machines         map[elf.Machine]Machine
}

var elf64 = elfClass{
	bits: 64, header: 64, program: 56, dyn: 16, rel: 16, rela: 24, word: 8,
	phoff: 32, phentsize: 54, entry: 24, infoType: func(i uint64) uint32 { return uint32(i) },
	offset: 8, vaddr: 16, filesz: 32, memsz: 40, flags: 4,
	relativeOf: map[elf.Machine]uint32{
		elf.EM_X86_64: uint32(elf.R_X86_64_RELATIVE), elf.EM_AARCH64: uint32(elf.R_AARCH64_RELATIVE),
	},
	machines: map[elf.Machine]Machine{elf.EM_X86_64: AMD64, elf.EM_AARCH64: ARM64},
}

var elf32 = elfClass{
	bits: 32, header: 52, program: 32, dyn: 8, rel: 8, rela: 12, word: 4,
	phoff: 28, phentsize: 42, entry: 24, infoType: func(i uint64) uint32 { return uint32(i) & 0xff },
	offset: 4, vaddr: 8, filesz: 16, memsz: 20, flags: 24,
	relativeOf: map[elf.Machine]uint32{elf.EM_386: uint32(elf.R_386_RELATIVE)},
	machines:   map[elf.Machine]Machine{elf.EM_386: I386},
}

// address reads a word of the class.
func (c *elfClass) address(b []byte) uint64 {
	if c.bits == 32 {
		return uint64(le.Uint32(b))
	}
	return le.Uint64(b)
}

// maxPrograms is more program headers than any linker makes.
const maxPrograms = 1024

// maxRelocations is the most bytes that a table of relocations may have. A sparse file has as many as it likes, at no cost to
// who makes it; large libraries have some ten million.
const maxRelocations = 16 << 20

// program is a program header.
type program struct {
	kind                         elf.ProgType
	flags                        elf.ProgFlag
	offset, vaddr, filesz, memsz uint64
}

func openELF(f *file) (*Image, error) {
	c, machine, head, err := elfHeader(f)
	if err != nil {
		return nil, err
	}
	programs, err := c.programs(f, head)
	if err != nil {
		return nil, err
	}
	im := &Image{
		Format: ELF, Machine: c.machines[machine], Bits: c.bits, size: f.size, LargeAddressAware: true, HighEntropy: c.bits == 64,
		Headers: uint64(c.header + len(programs)*c.program),
	}
	kind := elf.Type(le.Uint16(head[16:]))
	im.DynamicBase = kind == elf.ET_DYN
	low, err := im.loads(f, programs)
	if err != nil {
		return nil, err
	}
	if e := c.address(head[c.entry:]); e != 0 {
		if e < low || e-low >= im.Size {
			return nil, refuse(StatusInvalidImageFormat, "the entry point, 0x%x, is outside of the image", e)
		}
		im.Entry = e - low
	}
	im.Base = low
	im.NXCompat = im.Machine == ARM64
	interpreted := false
	for _, p := range programs {
		switch p.kind {
		case elf.PT_GNU_STACK:
			im.NXCompat = im.NXCompat || p.flags&elf.PF_X == 0
			im.StackReserve = p.memsz
		case elf.PT_INTERP:
			interpreted = true
		}
	}
	if kind == elf.ET_DYN {
		tags, err := c.dynamic(f, programs)
		if err != nil {
			return nil, err
		}
		im.DLL = !interpreted && tags[elf.DT_FLAGS_1]&uint64(elf.DF_1_PIE) == 0 // a static program has no interpreter either
		if im.fixups, err = c.relocations(im, f, programs, machine, low); err != nil {
			return nil, err
		}
	}
	return im, nil
}

// elfHeader checks the file's header.
func elfHeader(f *file) (c *elfClass, machine elf.Machine, head []byte, err error) {
	head, err = f.upTo(0, elf64.header)
	if err != nil {
		return nil, 0, nil, err
	}
	bad := func(why string) (*elfClass, elf.Machine, []byte, error) {
		return nil, 0, nil, refuse(StatusInvalidImageFormat, "%s", why)
	}
	if len(head) < elf32.header {
		return bad("the file ends in its ELF header")
	}
	switch elf.Class(head[elf.EI_CLASS]) {
	case elf.ELFCLASS32:
		c = &elf32
	case elf.ELFCLASS64:
		c = &elf64
	default:
		return bad("it is neither of 32 nor of 64 bits")
	}
	kind := elf.Type(le.Uint16(head[16:]))
	machine = elf.Machine(le.Uint16(head[18:]))
	switch {
	case len(head) < c.header:
		return bad("the file ends in its ELF header")
	case elf.Data(head[elf.EI_DATA]) != elf.ELFDATA2LSB:
		return bad("it is not little-endian")
	case head[elf.EI_VERSION] != byte(elf.EV_CURRENT):
		return bad("its version is unknown")
	case kind != elf.ET_EXEC && kind != elf.ET_DYN:
		return bad("it is neither a program nor a shared object")
	case c.machines[machine] == 0:
		return bad("its machine, " + machine.String() + ", is none of ours")
	}
	return c, machine, head, nil
}

func (c *elfClass) programs(f *file, head []byte) ([]program, error) {
	off, n := c.address(head[c.phoff:]), int(le.Uint16(head[c.phentsize+2:]))
	switch {
	case int(le.Uint16(head[c.phentsize:])) != c.program:
		return nil, refuse(StatusInvalidImageFormat, "program headers of another size")
	case n == 0 || n > maxPrograms:
		return nil, refuse(StatusInvalidImageFormat, "%d program headers", n)
	case off > uint64(f.size):
		return nil, refuse(StatusInvalidImageFormat, "the program headers are behind the file's end")
	}
	b, err := f.upTo(int64(off), n*c.program)
	if err != nil {
		return nil, err
	}
	if len(b) < n*c.program {
		return nil, refuse(StatusInvalidImageFormat, "the file ends in its program headers")
	}
	list := make([]program, 0, n)
	for ; len(b) > 0; b = b[c.program:] {
		list = append(list, program{
			kind: elf.ProgType(le.Uint32(b)), flags: elf.ProgFlag(le.Uint32(b[c.flags:])),
			offset: c.address(b[c.offset:]), vaddr: c.address(b[c.vaddr:]),
			filesz: c.address(b[c.filesz:]), memsz: c.address(b[c.memsz:]),
		})
	}
	return list, nil
}

// elfTop is above every address that a segment can have.
const elfTop = 1 << 47

// loads lays out the PT_LOADs, and says which address the first page of the image has in the file's own terms.
func (im *Image) loads(f *file, programs []program) (low uint64, err error) {
	list := slices.DeleteFunc(slices.Clone(programs), func(p program) bool { return p.kind != elf.PT_LOAD || p.memsz == 0 })
	if len(list) == 0 {
		return 0, refuse(StatusInvalidImageFormat, "there is nothing to load")
	}
	low = list[0].vaddr &^ (granularity - 1)
	end, raw := uint64(0), uint64(0)
	for _, p := range list {
		switch {
		case p.vaddr >= elfTop || p.memsz > elfTop || p.vaddr+p.memsz > elfTop || im.Bits == 32 && p.vaddr+p.memsz > 1<<32:
			return 0, refuse(StatusInvalidImageFormat, "a segment outside of the address space, at 0x%x", p.vaddr)
		case p.filesz > p.memsz:
			return 0, refuse(StatusInvalidImageFormat, "a segment larger in the file than in memory, at 0x%x", p.vaddr)
		case p.filesz != 0 && (p.offset > uint64(f.size) || p.filesz > uint64(f.size)-p.offset):
			return 0, refuse(StatusInvalidImageFormat, "the file ends in a segment, at 0x%x", p.vaddr)
		case p.filesz != 0 && p.offset%PageSize != p.vaddr%PageSize:
			return 0, refuse(StatusInvalidImageFormat, "a segment that lies otherwise within a page than in the file, at 0x%x", p.vaddr)
		case p.vaddr&^(PageSize-1) < end:
			return 0, refuse(StatusInvalidImageFormat, "segments overlap, or are not in order, at 0x%x", p.vaddr)
		}
		s := elfSegment(p, uint64(f.size))
		if raw += s.Raw; raw > maxImage {
			return 0, refuse(StatusInvalidImageFormat, "segments of more than 0x%x bytes of the file", uint64(maxImage))
		}
		end = s.RVA + s.Size
		if s.Access&Execute != 0 {
			im.Code = true
		}
		s.RVA -= low
		im.Subsections = append(im.Subsections, s)
	}
	im.Size = end - low
	return low, nil
}

// elfSegment is the subsection of a PT_LOAD, with its address for an RVA. It has whole pages of the file, save where zeros
// follow.
func elfSegment(p program, size uint64) Subsection {
	skip := p.vaddr % PageSize
	s := Subsection{RVA: p.vaddr - skip, Size: pageCeil(skip + p.memsz)}
	if p.filesz != 0 {
		s.Offset, s.Raw = int64(p.offset-skip), skip+p.filesz
		if p.memsz == p.filesz {
			s.Raw = min(s.Size, size-(p.offset-skip))
		}
	}
	for _, bit := range []struct {
		flag elf.ProgFlag
		a    Access
		name string
	}{{elf.PF_R, Read, "r"}, {elf.PF_W, Write, "w"}, {elf.PF_X, Execute, "x"}} {
		if p.flags&bit.flag != 0 {
			s.Access |= bit.a
			s.Name += bit.name
		} else {
			s.Name += "-"
		}
	}
	return s
}

// relocations reads the relative relocations that PT_DYNAMIC names.
func (c *elfClass) relocations(im *Image, f *file, programs []program, m elf.Machine, low uint64) (fixups, error) {
	dyn, err := c.dynamic(f, programs)
	if err != nil {
		return nil, err
	}
	var lists []fixups
	kind := c.relativeOf[m]
	for _, table := range []struct {
		at, size, entry elf.DynTag
		length          int
		read            func(list *relatives, b []byte, low uint64)
		inPlace         bool
	}{
		{elf.DT_RELA, elf.DT_RELASZ, elf.DT_RELAENT, c.rela, c.readRelative(kind, c.rela), false},
		{elf.DT_REL, elf.DT_RELSZ, elf.DT_RELENT, c.rel, c.readRelative(kind, c.rel), true},
		{dtRelr, dtRelrSize, dtRelrEntry, int(c.word), c.readRelr, true},
	} {
		at, size := dyn[table.at], dyn[table.size]
		if size == 0 {
			continue
		}
		if n := dyn[table.entry]; n != uint64(table.length) || size%n != 0 {
			return nil, refuse(StatusInvalidImageFormat, "0x%x bytes of relocations, of 0x%x each", size, n)
		}
		if table.at == elf.DT_RELA && c.bits == 32 {
			return nil, refuse(StatusInvalidImageFormat, "x86 has no relocations with addends")
		}
		b, err := im.directory(f, at-low, size)
		if err != nil {
			return nil, err
		}
		list := &relatives{word: c.word, inPlace: table.inPlace}
		table.read(list, b, low)
		for _, e := range list.list {
			if e.rva >= im.Size {
				return nil, refuse(StatusInvalidImageFormat, "a relocation at 0x%x, outside of the image", e.rva+low)
			}
		}
		if len(list.list) > 0 {
			lists = append(lists, list.sorted())
		}
	}
	switch len(lists) {
	case 0:
		return &relatives{word: c.word}, nil // there is nothing to fix
	case 1:
		return lists[0], nil
	case 2:
		return both{lists[0], lists[1]}, nil
	}
	return both{lists[0], both{lists[1], lists[2]}}, nil
}

// The tags of DT_RELR, which debug/elf does not have.
const (
	dtRelrSize  elf.DynTag = 35
	dtRelr      elf.DynTag = 36
	dtRelrEntry elf.DynTag = 37
)

// dynamic reads the entries of PT_DYNAMIC; of a tag that comes twice, the last.
func (c *elfClass) dynamic(f *file, programs []program) (map[elf.DynTag]uint64, error) {
	const most = 4096 // entries: there are some 50 tags
	tags := make(map[elf.DynTag]uint64)
	i := slices.IndexFunc(programs, func(p program) bool { return p.kind == elf.PT_DYNAMIC })
	if i < 0 || programs[i].offset > uint64(f.size) {
		return tags, nil
	}
	n := min(programs[i].filesz, uint64(most*c.dyn))
	b, err := f.upTo(int64(programs[i].offset), int(n))
	if err != nil {
		return nil, err
	}
	for ; len(b) >= c.dyn; b = b[c.dyn:] {
		tag := elf.DynTag(c.address(b))
		if tag == elf.DT_NULL {
			break
		}
		tags[tag] = c.address(b[c.word:])
	}
	return tags, nil
}

// directory reads a table of the image, which the file must have all of.
func (im *Image) directory(f *file, rva, size uint64) ([]byte, error) {
	s, ok := im.At(rva)
	if !ok || rva-s.RVA > s.Raw || size > s.Raw-(rva-s.RVA) {
		return nil, refuse(StatusInvalidImageFormat, "relocations at 0x%x that the file does not have", rva)
	}
	if size > maxRelocations {
		return nil, refuse(StatusInvalidImageFormat, "0x%x bytes of relocations, of which there may be 0x%x", size, maxRelocations)
	}
	b := make([]byte, size)
	return b, im.read(f.r, b, rva)
}

// readRelative reads DT_RELA or DT_REL, whose entries are of length bytes. Only the first have an addend.
func (c *elfClass) readRelative(kind uint32, length int) func(list *relatives, b []byte, low uint64) {
	return func(s *relatives, b []byte, low uint64) {
		for ; len(b) >= length; b = b[length:] {
			if c.infoType(c.address(b[c.word:])) != kind {
				continue
			}
			e := relative{c.address(b) - low, 1}
			if !s.inPlace {
				e.bits = c.address(b[2*c.word:])
			}
			s.list = append(s.list, e)
		}
	}
}

// readRelr reads DT_RELR: an even word is an address, and an odd one 31 or 63 bits for the words behind the last.
func (c *elfClass) readRelr(s *relatives, b []byte, low uint64) {
	next := uint64(0)
	for ; len(b) > 0; b = b[c.word:] {
		v := c.address(b)
		if v&1 == 0 {
			s.list = append(s.list, relative{v - low, 1})
			next = v - low + c.word
			continue
		}
		if v >>= 1; v != 0 {
			s.list = append(s.list, relative{next, v})
		}
		next += (c.word*8 - 1) * c.word
	}
}
