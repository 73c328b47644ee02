package win32

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"memfs/mm/process"
)

// Sections, views, files and handles.

func init() {
	RegisterConstants(map[string]uint64{
		"SEC_FILE": process.SecFile, "SEC_IMAGE": process.SecImage, "SEC_RESERVE": process.SecReserve,
		"SEC_COMMIT": process.SecCommit, "SEC_NOCACHE": process.SecNoCache, "SEC_WRITECOMBINE": process.SecWriteCombine,
		"SEC_LARGE_PAGES": process.SecLargePages, "SEC_IMAGE_NO_EXECUTE": process.SecImage | process.SecNoCache,

		"FILE_MAP_COPY": process.FileMapCopy, "FILE_MAP_WRITE": process.FileMapWrite, "FILE_MAP_READ": process.FileMapRead,
		"FILE_MAP_EXECUTE": process.FileMapExecute, "FILE_MAP_ALL_ACCESS": process.FileMapAllAccess,
		"FILE_MAP_LARGE_PAGES": process.FileMapLargePages,
		"SECTION_QUERY":        process.SectionQuery, "SECTION_MAP_WRITE": process.SectionMapWrite,
		"SECTION_MAP_READ": process.SectionMapRead, "SECTION_MAP_EXECUTE": process.SectionMapExecute,
		"SECTION_EXTEND_SIZE": process.SectionExtendSize, "SECTION_MAP_EXECUTE_EXPLICIT": process.SectionMapExecuteExplicit,
		"SECTION_ALL_ACCESS": process.SectionAllAccess,

		"MEM_UNMAP_WITH_TRANSIENT_BOOST": process.UnmapTransientBoost,

		"GENERIC_READ": process.GenericRead, "GENERIC_WRITE": process.GenericWrite, "GENERIC_EXECUTE": process.GenericExecute,
		"GENERIC_ALL": process.GenericAll, "DELETE": process.Delete, "READ_CONTROL": 0x20000, "STANDARD_RIGHTS_REQUIRED": 0xF0000,
		"SYNCHRONIZE": 0x100000, "FILE_READ_DATA": 1, "FILE_WRITE_DATA": 2, "FILE_EXECUTE": 0x20,
		"FILE_SHARE_READ": process.ShareRead, "FILE_SHARE_WRITE": process.ShareWrite, "FILE_SHARE_DELETE": process.ShareDelete,
		"FILE_ATTRIBUTE_NORMAL": 0x80, "FILE_ATTRIBUTE_TEMPORARY": 0x100, "FILE_FLAG_DELETE_ON_CLOSE": deleteOnClose,
		"FILE_FLAG_SEQUENTIAL_SCAN": 0x8000000, "FILE_FLAG_RANDOM_ACCESS": 0x10000000, "FILE_FLAG_NO_BUFFERING": 0x20000000,
		"FILE_FLAG_WRITE_THROUGH": 0x80000000,
		"CREATE_NEW":              1, "CREATE_ALWAYS": 2, "OPEN_EXISTING": 3, "OPEN_ALWAYS": 4, "TRUNCATE_EXISTING": 5,
		"FILE_BEGIN": 0, "FILE_CURRENT": 1, "FILE_END": 2,

		"DUPLICATE_CLOSE_SOURCE": process.DuplicateCloseSource, "DUPLICATE_SAME_ACCESS": process.DuplicateSameAccess,
		"SectionBasicInformation": 0, "SectionImageInformation": 1,
		"HANDLE_FLAG_INHERIT": process.HandleFlagInherit, "HANDLE_FLAG_PROTECT_FROM_CLOSE": process.HandleFlagProtect,
	})
	Register(
		Row{Name: "CreateFileMapping", Params: "File Protect MaximumSizeHigh MaximumSizeLow Name=string?", Do: createFileMapping,
			Help: "a section over a file, or over the page file (INVALID_HANDLE_VALUE)"},
		Row{Name: "CreateFileMappingNuma", Params: "File Protect MaximumSizeHigh MaximumSizeLow Name=string? Node?", Do: createFileMapping,
			Help: "the same; there is one node"},
		Row{Name: "CreateFileMappingFromApp", Params: "File Protect MaximumSize Name=string?", Do: createFileMapping,
			Help: "CreateFileMapping with a size of 64 bits"},
		Row{Name: "OpenFileMapping", Params: "DesiredAccess InheritHandle Name=string", Do: openFileMapping,
			Help: "another handle of a section, by its name"},
		Row{Name: "OpenFileMappingFromApp", Params: "DesiredAccess InheritHandle Name=string", Do: openFileMapping,
			Help: "the same"},
		Row{Name: "MapViewOfFile", Params: "FileMappingObject DesiredAccess FileOffsetHigh FileOffsetLow NumberOfBytesToMap",
			Do: mapViewOfFile, Help: "map a section; returns the base"},
		Row{Name: "MapViewOfFileEx",
			Params: "FileMappingObject DesiredAccess FileOffsetHigh FileOffsetLow NumberOfBytesToMap BaseAddress",
			Do:     mapViewOfFile, Help: "map a section at an address"},
		Row{Name: "MapViewOfFileExNuma",
			Params: "FileMappingObject DesiredAccess FileOffsetHigh FileOffsetLow NumberOfBytesToMap BaseAddress Node?",
			Do:     mapViewOfFile, Help: "the same; there is one node"},
		Row{Name: "MapViewOfFileFromApp", Params: "FileMappingObject DesiredAccess FileOffset NumberOfBytesToMap",
			Do: mapViewOfFile, Help: "MapViewOfFile with an offset of 64 bits"},
		Row{Name: "MapViewOfFile2",
			Params: "FileMapping Process=process Offset BaseAddress ViewSize AllocationType PageProtection",
			Do:     mapViewOfFile2, Help: "map a section into a process, with a PAGE_ protection"},
		Row{Name: "MapViewOfFileNuma2",
			Params: "FileMapping Process=process Offset BaseAddress ViewSize AllocationType PageProtection Node?",
			Do:     mapViewOfFile2, Help: "the same; there is one node"},
		Row{Name: "MapViewOfFile3",
			Params: "FileMapping Process=process BaseAddress Offset ViewSize AllocationType PageProtection Extended...",
			Do:     mapViewOfFile2, Help: "the same, also in the place of a placeholder"},
		Row{Name: "UnmapViewOfFile", Params: "BaseAddress", Help: "unmap the view at any address in it",
			Do: func(c *Call) error { return c.done(c.Process.UnmapView(c.Number("BaseAddress"), 0)) }},
		Row{Name: "UnmapViewOfFileEx", Params: "BaseAddress UnmapFlags", Do: unmapView(self), Help: "the same with flags"},
		Row{Name: "UnmapViewOfFile2", Params: "Process=process BaseAddress UnmapFlags", Do: unmapView(other),
			Help: "unmap in another process; MEM_PRESERVE_PLACEHOLDER leaves a placeholder"},
		Row{Name: "FlushViewOfFile", Params: "BaseAddress NumberOfBytesToFlush", Help: "what a view shows is the file already",
			Do: func(c *Call) error {
				return c.done(c.Process.FlushView(c.Number("BaseAddress"), c.Number("NumberOfBytesToFlush")))
			}},
		Row{Name: "GetMappedFileName", Params: "Address Size?", Do: getMappedFileName, Help: "the file that a view is of"},
		Row{Name: "NtQuerySection", Params: "Section Class?", Do: querySection, Help: "size and attributes of a section; SectionImageInformation"},

		Row{Name: "CreateFile", Params: "FileName=string DesiredAccess ShareMode? CreationDisposition? FlagsAndAttributes?",
			Do: createFile, Help: "open a file of the mount; OPEN_EXISTING unless told otherwise"},
		Row{Name: "DeleteFile", Params: "FileName=string", Help: "remove a file; what is open or mapped keeps its pages",
			Do: func(c *Call) error { return c.done(c.Process.RemoveFile(c.Text("FileName"))) }},
		Row{Name: "ReadFile", Params: "File Buffer NumberOfBytesToRead", Do: transfer((*process.Process).ReadFile, "BytesRead"),
			Help: "read from the file's position into memory"},
		Row{Name: "WriteFile", Params: "File Buffer NumberOfBytesToWrite",
			Do: transfer((*process.Process).WriteFile, "BytesWritten"), Help: "write memory at the file's position"},
		Row{Name: "SetFilePointer", Params: "File DistanceToMove DistanceToMoveHigh MoveMethod", Do: setFilePointer,
			Help: "move the position; returns it"},
		Row{Name: "SetFilePointerEx", Params: "File DistanceToMove MoveMethod", Do: setFilePointerEx,
			Help: "move the position, with 64 bits"},
		Row{Name: "SetEndOfFile", Params: "File", Help: "make the file end at its position",
			Do: func(c *Call) error { return c.done(c.Process.SetEndOfFile(c.handle("File"))) }},
		Row{Name: "GetFileSize", Params: "File", Do: getFileSize, Help: "the file's size; returns its low half"},
		Row{Name: "GetFileSizeEx", Params: "File", Do: getFileSizeEx, Help: "the file's size"},
		Row{Name: "FlushFileBuffers", Params: "File", Do: func(c *Call) error {
			_, err := c.Process.FileSize(c.handle("File"))
			return c.done(err)
		}, Help: "what is in memory is the file already"},

		Row{Name: "CloseHandle", Params: "Handle", Do: closeHandle, Help: "close a handle; the last one takes the name along"},
		Row{Name: "DuplicateHandle", Params: "SourceHandle DesiredAccess TargetProcess=process? InheritHandle? Options?",
			Do: duplicateHandle, Help: "another handle of an object, with as much access or less"},
		Row{Name: "SetHandleInformation", Params: "Object Mask Flags", Do: setHandleInformation,
			Help: "HANDLE_FLAG_INHERIT: child processes get the handle"},
		Row{Name: "GetHandleInformation", Params: "Object", Do: getHandleInformation, Help: "the handle's flags"},
		Row{Name: "CreateProcess", Params: "Name=string InheritHandles? ApplicationName=string?", Do: createProcess,
			Help: "start a process, of a name or of a file \"\\dir\\app.exe\"; with handles it has the caller's variables too"},
	)
}

// handle is a handle as the caller's processor has it: INVALID_HANDLE_VALUE has all the bits that there are.
func (c *Call) handle(name string) process.Handle {
	n := c.Number(name)
	if c.Process.Image().Arch.Pointer() == 4 && n == 0xFFFFFFFF {
		return process.NoHandle
	}
	return process.Handle(n)
}

// wide joins the halves of a number of 64 bits; the low one may have more than 32.
func (c *Call) wide(high, low string) uint64 { return c.Number(high)<<32 + c.Number(low) }

func createFileMapping(c *Call) error {
	flags, ok := c.Flags("Protect")
	if !ok {
		return process.InvalidParameter
	}
	h, existed, err := c.Process.CreateSection(c.handle("File"), flags, c.wide("MaximumSizeHigh", "MaximumSizeLow")+c.Number("MaximumSize"),
		c.Text("Name"), false)
	return c.made(h, existed, err)
}

// made is the end of a call that makes or opens an object: the last error says which.
func (c *Call) made(h process.Handle, existed bool, err error) error {
	if err != nil {
		return err
	}
	c.Return(uint64(h))
	if existed {
		c.leave(process.AlreadyExists)
	} else {
		c.leave(process.Success)
	}
	return nil
}

func openFileMapping(c *Call) error {
	access, ok := c.Flags("DesiredAccess")
	if !ok {
		return process.InvalidParameter
	}
	h, err := c.Process.OpenSection(access, c.Number("InheritHandle") != 0, c.Text("Name"))
	c.Return(uint64(h))
	return err
}

func mapViewOfFile(c *Call) error {
	access, ok := c.Flags("DesiredAccess")
	if !ok {
		return process.InvalidParameter
	}
	base, err := c.Process.MapView(c.handle("FileMappingObject"), process.ViewRequest{
		Offset: c.wide("FileOffsetHigh", "FileOffsetLow") + c.Number("FileOffset"), Base: c.Number("BaseAddress"),
		Size: c.Number("NumberOfBytesToMap"), Protection: process.ViewProtection(access), Type: viewType(access),
	})
	c.Return(base)
	return err
}

// viewType is the allocation type that goes with MapViewOfFile's access.
func viewType(access uint32) uint32 {
	if access&process.FileMapLargePages != 0 {
		return process.MemLargePages
	}
	return 0
}

func mapViewOfFile2(c *Call) error {
	p, err := other(c)
	if err != nil && (c.row.name != "MapViewOfFile3" || c.Number("Process") != 0) {
		return err
	}
	f, err := c.flags("AllocationType", "PageProtection")
	if err != nil {
		return err
	}
	if p == nil {
		p = c.Process // NULL means the caller in MapViewOfFile3
	}
	if c.row.name != "MapViewOfFile3" && f[0]&process.MemReplacePlaceholder != 0 {
		return process.InvalidParameter
	}
	if err := c.noExtended(); err != nil {
		return err
	}
	base, err := c.Process.MapView(c.handle("FileMapping"), process.ViewRequest{
		Offset: c.Number("Offset"), Base: c.Number("BaseAddress"), Size: c.Number("ViewSize"), Type: f[0],
		Protection: process.Protection(f[1]), Target: p,
	})
	c.Return(base)
	return err
}

func unmapView(of target) func(c *Call) error {
	return func(c *Call) error {
		p, err := of(c)
		if err != nil {
			return err
		}
		f, err := c.flags("UnmapFlags")
		if err != nil {
			return err
		}
		return c.done(p.UnmapView(c.Number("BaseAddress"), f[0]))
	}
}

func getMappedFileName(c *Call) error {
	name, err := c.Process.MappedFile(c.Number("Address"))
	if err != nil {
		return err
	}
	c.Return(uint64(len(name)))
	if strings.ContainsAny(name, " \t\"\\") {
		name = strconv.Quote(name)
	}
	c.Set("Filename", name)
	return nil
}

// sectionAttributes are the SEC_ constants in the order in which they are written.
var sectionAttributes = []struct {
	bit  uint32
	name string
}{
	{process.SecFile, "SEC_FILE"}, {process.SecImage, "SEC_IMAGE"}, {process.SecReserve, "SEC_RESERVE"},
	{process.SecCommit, "SEC_COMMIT"}, {process.SecNoCache, "SEC_NOCACHE"}, {process.SecWriteCombine, "SEC_WRITECOMBINE"},
	{process.SecLargePages, "SEC_LARGE_PAGES"},
}

// AttributesText is the names of SEC_ bits joined with |.
func AttributesText(bits uint32) string {
	var s []string
	for _, a := range sectionAttributes {
		if bits&a.bit != 0 {
			s = append(s, a.name)
			bits &^= a.bit
		}
	}
	if bits != 0 || len(s) == 0 {
		s = append(s, fmt.Sprintf("0x%x", bits))
	}
	return strings.Join(s, "|")
}

func querySection(c *Call) error {
	i, err := c.Process.QuerySection(c.handle("Section"))
	if err != nil {
		return err
	}
	switch c.Number("Class") {
	case 0: // SectionBasicInformation
		c.Set("BaseAddress", 0)
		c.Set("Attributes", AttributesText(i.Attributes))
		c.SetHex("Size", i.Size)
		c.Set("AllocationAttributes", AttributesText(i.Attributes))
		c.SetHex("MaximumSize", i.Size)
	case 1: // SectionImageInformation
		if i.Image == nil {
			return process.InvalidParameter // STATUS_SECTION_NOT_IMAGE
		}
		c.imageInformation(i.Image)
	default:
		return process.InvalidParameter
	}
	return c.done(nil)
}

// imageInformation is SECTION_IMAGE_INFORMATION, as far as it is about memory.
func (c *Call) imageInformation(i *process.ImageInfo) {
	c.SetHex("TransferAddress", i.Base+i.Entry)
	c.SetHex("MaximumStackSize", i.StackReserve)
	c.SetHex("CommittedStackSize", i.StackCommit)
	c.Set("SubSystemType", i.Subsystem)
	c.SetHex("Machine", uint64(i.Machine))
	c.SetHex("DllCharacteristics", uint64(i.DLLCharacteristics()))
	c.SetBool("ImageContainsCode", i.Code)
	c.SetBool("ImageDynamicallyRelocated", i.Dynamic())
	c.SetBool("ImageMappedFlat", i.Flat)
	c.SetHex("ImageFileSize", uint64(i.FileSize))
}

// deleteOnClose is FILE_FLAG_DELETE_ON_CLOSE.
const deleteOnClose = 0x4000000

// createFile opens a file. What is left out shares everything, and opens what is there.
func createFile(c *Call) error {
	f, err := c.flags("DesiredAccess", "ShareMode", "FlagsAndAttributes")
	if err != nil {
		return err
	}
	d, share := process.OpenExisting, uint32(process.ShareAll)
	if c.Given("ShareMode") {
		share = f[1]
	}
	if c.Given("CreationDisposition") {
		d = process.Disposition(min(c.Number("CreationDisposition"), 1<<31))
	}
	h, existed, err := c.Process.OpenFile(process.FileRequest{
		Path: c.Text("FileName"), Access: f[0], Share: share, Disposition: d, DeleteOnClose: f[2]&deleteOnClose != 0,
	})
	if err != nil {
		return err
	}
	c.Return(uint64(h))
	if d == process.CreateAlways || d == process.OpenAlways {
		return c.made(h, existed, nil)
	}
	return nil
}

func transfer(do func(p *process.Process, h process.Handle, addr, n uint64) (uint64, error), field string) func(*Call) error {
	return func(c *Call) error {
		n, err := do(c.Process, c.handle("File"), c.Number("Buffer"), c.Number("NumberOfBytesToRead")+c.Number("NumberOfBytesToWrite"))
		if err == nil || n > 0 {
			c.Set(field, n)
		}
		return c.done(err)
	}
}

func setFilePointer(c *Call) error {
	distance := int64(int32(c.Number("DistanceToMove")))
	if high := c.Number("DistanceToMoveHigh"); high != 0 {
		distance = int64(high<<32 | c.Number("DistanceToMove")&0xFFFFFFFF)
	}
	to, err := c.Process.SeekFile(c.handle("File"), distance, uint32(min(c.Number("MoveMethod"), 1<<31)))
	c.Return(to & 0xFFFFFFFF)
	return err
}

func setFilePointerEx(c *Call) error {
	to, err := c.Process.SeekFile(c.handle("File"), int64(c.Number("DistanceToMove")), uint32(min(c.Number("MoveMethod"), 1<<31)))
	if err == nil {
		c.SetHex("NewFilePointer", to)
	}
	return c.done(err)
}

func getFileSize(c *Call) error {
	n, err := c.Process.FileSize(c.handle("File"))
	if err != nil {
		return err
	}
	c.Return(n & 0xFFFFFFFF)
	c.SetHex("FileSizeHigh", n>>32)
	return nil
}

func getFileSizeEx(c *Call) error {
	n, err := c.Process.FileSize(c.handle("File"))
	if err == nil {
		c.SetHex("FileSize", n)
	}
	return c.done(err)
}

// pseudoHandles is how many of the highest handles mean the caller itself, its thread and the like: closing them does
// nothing.
const pseudoHandles = 6

func closeHandle(c *Call) error {
	h := c.handle("Handle")
	if h > process.NoHandle-pseudoHandles || c.closeNotification(uint64(h)) {
		return c.done(nil)
	}
	return c.done(c.Process.Close(h))
}

func duplicateHandle(c *Call) error {
	f, err := c.flags("DesiredAccess", "Options")
	if err != nil {
		return err
	}
	to := c.Process
	if c.Given("TargetProcess") {
		if to, err = c.Other("TargetProcess"); err != nil {
			return err
		}
	}
	h, err := c.Process.Duplicate(c.handle("SourceHandle"), to, f[0], c.Number("InheritHandle") != 0, f[1])
	c.Return(uint64(h))
	return err
}

func setHandleInformation(c *Call) error {
	f, err := c.flags("Mask", "Flags")
	if err != nil {
		return err
	}
	return c.done(c.Process.SetHandleFlags(c.handle("Object"), f[0], f[1]))
}

func getHandleInformation(c *Call) error {
	f, err := c.Process.HandleFlags(c.handle("Object"))
	if err == nil {
		c.SetHex("Flags", uint64(f))
	}
	return c.done(err)
}

// createProcess starts a process by name, or one that runs a file: the name is then the file's, unless both are given. One that
// inherits handles knows them by the names of the caller's variables, as if it had been told on its command line.
func createProcess(c *Call) error {
	name, program := c.Text("Name"), c.Text("ApplicationName")
	var child *peer
	var err error
	switch {
	case isName(name):
		child, err = c.Session.start(name, program)
	case name == "" && program == "":
		return syntaxf("a name is wanted, such as \"P2\", or a file of the mount")
	default:
		if program == "" {
			program = name
		}
		name, child, err = c.Session.startFile(program)
	}
	if err != nil {
		return err
	}
	if c.Number("InheritHandles") != 0 {
		if err := child.process.InheritHandles(c.Process); err != nil {
			return err
		}
		c.Session.mu.Lock()
		for k, v := range c.peer.variables {
			child.variables[k] = v
		}
		c.Session.mu.Unlock()
	}
	c.SetHex("ProcessId", uint64(child.process.ID()))
	if run := child.process.Program(); run != nil {
		c.Set("Name", name)
		c.SetHex("ImageBaseAddress", run.Base)
		c.SetHex("TransferAddress", run.Entry)
	}
	return c.done(nil)
}

// startFile starts a process that is called like its file, with a number behind the name if there is one already.
func (s *Session) startFile(program string) (name string, child *peer, err error) {
	base := peerName(process.ProgramName(program))
	for n := 1; n <= maxPeers; n++ {
		if name = base; n > 1 {
			name = fmt.Sprintf("%s%d", base, n)
		}
		if child, err = s.start(name, program); !errors.Is(err, process.AlreadyExists) {
			break
		}
	}
	return name, child, err
}

// peerName is the name of a file, without its extension, as one that lines can begin with.
func peerName(file string) string {
	const most = 48
	if i := strings.LastIndexByte(file, '.'); i > 0 {
		file = file[:i]
	}
	name := strings.Map(func(r rune) rune {
		if r < 0x80 && (r == '_' || r >= '0' && r <= '9' || isName(string(r))) {
			return r
		}
		return '_'
	}, file)
	if !isName(name) {
		name = "_" + name
	}
	return name[:min(len(name), most)]
}
