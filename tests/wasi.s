# The tag of longjmp's exceptions, which some wasi-libc have not.
	.globl __c_longjmp
	.tagtype __c_longjmp i32
__c_longjmp:
